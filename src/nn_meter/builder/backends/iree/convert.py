"""ONNX into IREE's own files: importing models, and running its compiler.

The importer runs in this process. The compiler runs in one of its own: it reports an error in a
model it cannot take, or ends on a signal, and neither ends us.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Shapes
from nn_meter.errors import ConversionError, NotInstalledError

__all__ = [
    "CompileError",
    "compile_graphs",
    "compile_module",
    "import_model",
    "join_modules",
    "write_module",
]

log = logging.getLogger(__name__)

_TARGET = (
    "--iree-hal-target-device=local",
    "--iree-hal-local-target-device-backends=llvm-cpu",
    "--iree-llvmcpu-target-cpu=host",
    "--mlir-print-op-on-diagnostic=false",
)
# The last phase in which each dispatch still stands inside the function that it belongs to. The
# next one, flow, moves them out and merges those of all functions that are alike.
_GRAPH_PHASE = "dispatch-creation"
_OLDEST_OPSET = 17  # IREE's importer is written for this and newer ones
_MOST_LINES = 2


class CompileError(Exception):
    """IREE's compiler refuses a module.

    Attributes:
        blamed: Names of the functions that its message points at; empty if it points at none.
    """

    def __init__(self, words: str, blamed: frozenset[str] = frozenset()) -> None:
        super().__init__(words)
        self.blamed = blamed


# --- importing -----------------------------------------------------------------------------------


def import_model(path: Path, name: str, shapes: Shapes | None, context: Any) -> Any:
    """Read an ``.onnx`` file into a module with one public function.

    Every op gets the location ``name:position``, by its position in the file, so that it is known
    later whatever the model calls it.

    Args:
        path: The model; it is left as it is.
        name: Of the function.
        shapes: Of the inputs without the batch dimension, for models that leave them open.
        context: The ``iree.compiler.ir.Context`` to make it in.

    Returns:
        The ``iree.compiler.ir.Operation`` of the module.

    Raises:
        ConversionError: It cannot be read, or has what the importer does not know.
    """
    try:
        import onnx
        from iree.compiler.extras import onnx_importer
    except ImportError as exc:
        raise NotInstalledError.for_extra("IREE's compiler, or onnx", "iree") from exc
    try:
        model = _prepared(onnx, path, shapes)
        model.graph.name = name
        for position, node in enumerate(model.graph.node):
            node.name = f"{name}:{position}"
        info = onnx_importer.ModelInfo(model)
        module = info.create_module(context=context).operation
        onnx_importer.NodeImporter.define_function(info.main_graph, module).import_all()
        module.verify()
    except Exception as exc:
        raise ConversionError(f"{path.name}: IREE cannot import it: {_line(exc)}") from exc
    return module


def _prepared(onnx: Any, path: Path, shapes: Shapes | None) -> Any:
    """The model with all shapes known, and an opset that the importer is written for."""
    model = onnx.load(path)
    opset = max(
        (it.version for it in model.opset_import if it.domain in ("", "ai.onnx")), default=0
    )
    if 0 < opset < _OLDEST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, _OLDEST_OPSET)
        except (onnx.version_converter.ConvertError, RuntimeError, ValueError) as exc:
            log.warning(
                "%s: onnx cannot lift it from opset %d to %d, IREE gets it as it is: %s",
                path.name,
                opset,
                _OLDEST_OPSET,
                _line(exc),
            )
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for value, shape in zip(inputs, shapes or (), strict=False):
        sizes = value.type.tensor_type.shape.dim
        if len(sizes) == len(shape) + 1:
            for size, wanted in zip(sizes, (1, *shape), strict=True):
                if not size.HasField("dim_value"):
                    size.dim_value = wanted
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def join_modules(modules: Sequence[Any]) -> Any:
    """Move what modules of one context hold into the first; their names must differ."""
    first, *others = modules
    body = first.regions[0].blocks[0]
    for module in others:
        for op in list(module.regions[0].blocks[0].operations):
            op.operation.detach_from_parent()
            body.append(op)
    return first


def write_module(module: Any, path: Path) -> None:
    """Write a module as MLIR bytecode, with its locations."""
    with path.open("wb") as file:
        module.write_bytecode(file)


# --- compiling -----------------------------------------------------------------------------------


def compile_module(source: Path, target: Path) -> None:
    """Compile a module for this host's CPU.

    Raises:
        CompileError: The compiler refuses it.
    """
    _compile(source, target, "--output-format=vm-bytecode")


def compile_graphs(source: Path, target: Path) -> None:
    """Compile a module as ``compile_module`` would, up to where its dispatches are formed.

    Raises:
        CompileError: The compiler refuses it.
    """
    _compile(source, target, f"--compile-to={_GRAPH_PHASE}", "--emit-mlir-bytecode")


def _compile(source: Path, target: Path, *flags: str) -> None:
    try:
        from iree.compiler.tools import binaries
    except ImportError as exc:
        raise NotInstalledError.for_extra("IREE's compiler", "iree") from exc
    # Its linker and its crash handler write to the folder for temporary files.
    with tempfile.TemporaryDirectory(prefix=".iree-", dir=target.parent) as folder:
        done = subprocess.run(
            [
                binaries.find_tool("iree-compile"),
                *_TARGET,
                *flags,
                str(source.absolute()),
                "-o",
                "made",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd=folder,
            env=os.environ | {"TMPDIR": str(Path(folder).absolute())},
        )
        if done.returncode != 0:
            raise _refusal(done.returncode, done.stderr)
        (Path(folder) / "made").replace(target)


def _refusal(code: int, words: str) -> CompileError:
    lines = [line for line in words.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line] or lines[-1:]
    blamed = {name for line in errors for name in re.findall(r'"([^":]+):\d+"', line)}
    told = [re.sub(r"^.*?error: (loc\(.*?\): )?", "", line).strip() for line in errors]
    told = list(dict.fromkeys(told))[:_MOST_LINES]
    if code < 0:
        told.insert(0, f"iree-compile ended by signal {-code}")
    return CompileError("; ".join(told) or f"iree-compile gave code {code}", frozenset(blamed))


def _line(exc: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(exc).splitlines()]
    return next((line for line in lines if line), type(exc).__name__)
