"""Pnnx, which turns ONNX models into ncnn's: running it, and what it says.

Only its program is used: importing the package ``pnnx`` would import torch. The program opens no
socket, and writes nothing but files beside its input; so it works on a copy, in a folder that is
thrown away.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from nn_meter.builder.backends.base import Shapes
from nn_meter.builder.backends.ncnn.graph import Layer, param_text, read_layers
from nn_meter.errors import BackendError, ConversionError, NotInstalledError

__all__ = [
    "Made",
    "Port",
    "Ports",
    "bin_of",
    "convert",
    "param_of",
    "pnnx_program",
    "pnnx_version",
    "ports_of",
    "read_ports",
    "require_converted",
    "run_pnnx",
    "write_converted",
]

_MODEL = "model"
_PARAM = f"{_MODEL}.ncnn.param"
_BIN = f"{_MODEL}.ncnn.bin"
_SCRIPT = f"{_MODEL}_ncnn.py"
_SHAPES = f"{_MODEL}.pnnx.param"
_PORTS = "ports.json"

# Shapes stand in the graph that pnnx makes before it goes to ncnn; which axis it dropped stands in
# the script that it writes to show how the model is run.
_INPUT = re.compile(r"^pnnx\.Input +(\S+).* (\S+) *$", re.MULTILINE)
_OUTPUT = re.compile(r"^pnnx\.Output +(\S+).* (\S+) *$", re.MULTILINE)
_SHAPE = re.compile(r"=\(([0-9,]*)\)")
_AXIS = re.compile(r"(\w+)\.numpy\((?:\), )?batch_index=(\d+)")
_NO_AXIS = 233  # how pnnx writes that it dropped no batch axis
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MOST_WORDS = 400


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a model.

    Attributes:
        name: Its name in the ncnn model.
        shape: In the source model, batch included.
        batch_axis: The axis of ``shape`` that ncnn's tensor lacks; None where it has them all,
            as pnnx leaves it in models whose operators do not tell it which axis is the batch.
    """

    name: str
    shape: tuple[int, ...]
    batch_axis: int | None = None


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Inputs and outputs of a model, each in the order of the source model."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What pnnx made of a file.

    Attributes:
        layers: Of its ``.param`` file.
        weights: Its ``.bin`` file.
        words: What pnnx printed.
        inputs, outputs: By name, what the graph that it makes before it goes to ncnn tells of the
            shape.
        axes: By name of an input or output, the axis that it dropped, as it writes it.
    """

    layers: tuple[Layer, ...]
    weights: bytes
    words: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    axes: Mapping[str, int]


# --- the program ---------------------------------------------------------------------------------


def pnnx_program() -> Path:
    """Where the program is.

    Raises:
        NotInstalledError: Nowhere.
    """
    spec = find_spec("pnnx")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("pnnx", "pnnx.exe"):
            if (program := Path(folder) / name).is_file():
                return program
    raise NotInstalledError(
        "pnnx, the converter of ncnn, is not installed; pip install --no-deps pnnx brings it "
        "(without --no-deps pip installs torch with it, which the converter does not need)"
    )


def pnnx_version() -> str:
    """Its version.

    Raises:
        NotInstalledError: It is not there.
    """
    program = pnnx_program()
    try:
        return metadata.version("pnnx")
    except metadata.PackageNotFoundError as exc:
        raise NotInstalledError(
            f"{program} is there, but not the package that it belongs to; "
            "pip install --no-deps pnnx brings both"
        ) from exc


def run_pnnx(model: Path, shapes: Shapes, folder: Path, *, label: str) -> Made:
    """Convert ``folder / "model.onnx"``, which must be there or be ``model``.

    Args:
        model: An ``.onnx`` file; it is copied.
        shapes: Of its inputs without the batch dimension; empty: those that the file tells.
        folder: An empty folder of one's own. What pnnx makes stays there.
        label: The model's name in messages.

    Raises:
        ConversionError: It failed, and its last words are kept; or what it wrote cannot be read.
    """
    source = folder / f"{_MODEL}.onnx"
    if model != source:
        try:
            content = model.read_bytes()
        except OSError as exc:
            raise ConversionError(f"{label}: it cannot be read: {exc}") from exc
        source.write_bytes(content)
    # fp16=0: weights stay as they are; rounded ones show in the outputs.
    command = [str(pnnx_program()), source.name, "fp16=0"]
    if shapes:
        texts = (",".join(str(int(size)) for size in (1, *shape)) for shape in shapes)
        command.append("inputshape=" + ",".join(f"[{text}]" for text in texts))
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as exc:
        raise BackendError(f"pnnx cannot be started: {exc}") from exc
    words = _COLOURS.sub("", done.stdout)
    missing = [name for name in (_PARAM, _BIN) if not (folder / name).is_file()]
    if done.returncode or missing:
        last = next((line for line in reversed(words.splitlines()) if line.strip()), "")
        ended = _ending(done.returncode) if done.returncode else f"it wrote no {missing[0]}"
        raise ConversionError(
            f"{label}: pnnx cannot convert it: {_one_line(last) or 'no word of it'} ({ended})"
        )
    try:
        param, graph, script = (
            (folder / name).read_text(encoding="utf-8") for name in (_PARAM, _SHAPES, _SCRIPT)
        )
        layers, weights = read_layers(param), (folder / _BIN).read_bytes()
    except (OSError, UnicodeError, ValueError) as exc:
        raise ConversionError(f"{label}: what pnnx wrote cannot be read: {exc}") from exc
    return Made(
        layers=tuple(layers),
        weights=weights,
        words=words,
        inputs=dict(_INPUT.findall(graph)),
        outputs=dict(_OUTPUT.findall(graph)),
        axes={name: int(axis) for name, axis in _AXIS.findall(script)},
    )


def _ending(code: int) -> str:
    if code < 0:
        try:
            return f"it crashed: {signal.Signals(-code).name}"
        except ValueError:
            return f"it crashed: signal {-code}"
    return f"exit code {code}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_WORDS else f"{line[: _MOST_WORDS - 1]}…"


def require_converted(
    layers: Sequence[Layer], words: str, *, known: Callable[[str], bool], label: str
) -> None:
    """Check that ncnn has every layer: pnnx writes out what it cannot convert as it found it.

    Args:
        layers: Of the model.
        words: What pnnx printed while it made them.
        known: Whether ncnn has a layer of that type.
        label: The model's name in messages.

    Raises:
        ConversionError: One is not converted; says what pnnx had to say of it.
    """
    left = [layer for layer in layers if not known(layer.type)]
    if not left:
        return
    lines = words.splitlines()
    said = []
    for layer in left:
        todo = f"todo {layer.type}"
        ignored = f"ignore {layer.type} {layer.name} param "
        found = [todo] if todo in lines else [f"it leaves {layer.type} as it is"]
        found += [line.removeprefix(ignored) for line in lines if line.startswith(ignored)]
        said.append(", ".join(found))
    raise ConversionError(
        f"{label}: pnnx cannot convert it: {_one_line('; '.join(dict.fromkeys(said)))} "
        "(ncnn has no such layer)"
    )


# --- one model -----------------------------------------------------------------------------------


def convert(model: Path, save_path: Path, shapes: Shapes, *, known: Callable[[str], bool]) -> Path:
    """Convert a model; see ``BaseBackend.convert_model``.

    Args:
        model: An ``.onnx`` file.
        save_path: An existing folder.
        shapes: Of its inputs without the batch dimension; empty: those that the file tells.
        known: Whether ncnn has a layer of a type.

    Returns:
        ``<stem>.ncnn.param``; beside it lie ``<stem>.ncnn.bin``, and ``<stem>.ncnn.json``: the
        ``Ports``, which the other two do not tell.

    Raises:
        ConversionError: Pnnx cannot convert it.
    """
    with TemporaryDirectory(dir=save_path, prefix=".pnnx-") as folder:
        made = run_pnnx(model, shapes, Path(folder), label=model.name)
    require_converted(made.layers, made.words, known=known, label=model.name)
    ports = ports_of(made, shapes, label=model.name)
    target = param_of(model, save_path)
    write_converted(target, made.layers, made.weights, ports)
    return target


def write_converted(param: Path, layers: Sequence[Layer], weights: bytes, ports: Ports) -> None:
    """Write the files of a model; the ``.param`` file comes last, so with it all are there."""
    with TemporaryDirectory(dir=param.parent, prefix=".pnnx-") as name:
        folder = Path(name)
        (folder / _PARAM).write_text(param_text(layers), encoding="utf-8")
        (folder / _BIN).write_bytes(weights)
        (folder / _PORTS).write_text(json.dumps(asdict(ports)), encoding="utf-8")
        (folder / _BIN).replace(bin_of(param))
        (folder / _PORTS).replace(_table_of(param))
        (folder / _PARAM).replace(param)


def param_of(model: Path, save_path: Path) -> Path:
    """The ``.param`` file that is made of a model."""
    return save_path / f"{model.stem}.ncnn.param"


def bin_of(param: Path) -> Path:
    """The file of the weights that belongs to a ``.param`` file."""
    return param.with_suffix(".bin")


def _table_of(param: Path) -> Path:
    return param.with_suffix(".json")


def read_ports(param: Path) -> Ports:
    """Read what ``convert`` wrote beside a ``.param`` file.

    Raises:
        OSError, ValueError: There is no such file, or it is something else.
    """
    data = json.loads(_table_of(param).read_text(encoding="utf-8"))
    try:
        inputs, outputs = (
            tuple(
                Port(
                    name=str(port["name"]),
                    shape=tuple(int(size) for size in port["shape"]),
                    batch_axis=None if port["batch_axis"] is None else int(port["batch_axis"]),
                )
                for port in data[side]
            )
            for side in ("inputs", "outputs")
        )
    except (LookupError, TypeError) as exc:
        raise ValueError(f"{_table_of(param).name} holds no inputs and outputs") from exc
    return Ports(inputs=inputs, outputs=outputs)


def ports_of(
    made: Made,
    shapes: Shapes,
    *,
    label: str,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Ports:
    """Find what the ``.param`` file does not tell.

    Args:
        made: What pnnx made.
        shapes: That the inputs should have, without the batch dimension; empty: any.
        label: The model's name in messages.
        inputs: Names of the inputs, in order, where ``made`` has those of other models, too.
        outputs: Names of the outputs, likewise.

    Raises:
        ConversionError: Pnnx does not tell it, or the inputs are others.
    """
    try:
        ports = Ports(
            inputs=_side(made.inputs, made.axes, inputs),
            outputs=_side(made.outputs, made.axes, outputs),
        )
    except ValueError as exc:
        raise ConversionError(f"{label}: what pnnx wrote cannot be read: {exc}") from exc
    found = [list(port.shape) for port in ports.inputs]
    wanted = [[1, *(int(size) for size in shape)] for shape in shapes]
    if shapes and found != wanted:
        raise ConversionError(
            f"{label}: pnnx makes a model with the inputs {found} of it, not {wanted}"
        )
    return ports


def _side(
    told: Mapping[str, str], axes: Mapping[str, int], names: Sequence[str] | None
) -> tuple[Port, ...]:
    ports = []
    for name in sorted(told, key=_position) if names is None else names:
        shape = _SHAPE.search(told.get(name, ""))
        if shape is None:
            raise ValueError(f"it tells no fixed shape of {name}: {told.get(name, '')}")
        if name not in axes:
            raise ValueError(f"it does not tell which axis of {name} it dropped")
        ports.append(
            Port(
                name=name,
                shape=tuple(int(size) for size in shape[1].split(",") if size),
                batch_axis=None if axes[name] == _NO_AXIS else axes[name],
            )
        )
    return tuple(ports)


def _position(name: str) -> int:
    return int(re.sub(r"\D", "", name) or 0)
