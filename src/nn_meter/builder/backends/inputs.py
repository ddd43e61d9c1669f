"""Which of a file's inputs is which of the model's.

Signatures, of SavedModels and of what is converted from them, know inputs by name only; the order
in the file is then the alphabet's (``input_10`` before ``input_2``) or a hash table's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["match_inputs", "natural_key"]

_Shape = Sequence[int]


def natural_key(name: str) -> list[int | str]:
    """A key that sorts names as people count: ``input_2`` before ``input_10``."""
    parts = re.split(r"([0-9]+)", name)  # text and numbers in turn, text first
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def match_inputs(
    names: Sequence[str],
    found: Sequence[_Shape | None],
    shapes: Sequence[_Shape],
    *,
    by_name: bool,
) -> list[int]:
    """Find the inputs of a model in its file.

    Among inputs of one shape the order decides, as it stands or by name; a shape that only one
    input has decides by itself.

    Args:
        names: Of the file's inputs.
        found: Their shapes, batch included; -1 stands for any size, None for any shape.
        shapes: Of the model's inputs, in its order, without the batch dimension.
        by_name: Whether the names tell the order, and not the file.

    Returns:
        For each input of the model, its position in the file.

    Raises:
        ValueError: The file's inputs have other shapes.
    """
    left = sorted(range(len(names)), key=lambda i: natural_key(names[i]) if by_name else i)
    order = []
    for shape in shapes:
        position = next((i for i in left if _fits(found[i], [1, *shape])), None)
        if position is None:
            break
        left.remove(position)
        order.append(position)
    if left or len(order) < len(shapes):
        inputs = ", ".join(
            f"{name} {_text(shape)}" for name, shape in zip(names, found, strict=True)
        )
        wanted = ", ".join(str([1, *shape]) for shape in shapes)
        raise ValueError(f"its inputs are {inputs or 'none'}, but should be of the shapes {wanted}")
    return order


def _fits(found: _Shape | None, wanted: _Shape) -> bool:
    if found is None:
        return True
    return len(found) == len(wanted) and all(
        size in (-1, want) for size, want in zip(found, wanted, strict=True)
    )


def _text(shape: _Shape | None) -> str:
    if shape is None:
        return "of any shape"
    return "[" + ", ".join("?" if size < 0 else str(size) for size in shape) + "]"
