"""ONNX Runtime on the execution providers that PROVIDERS names: those run, or it is an error.

ONNX Runtime itself takes another provider wherever the one asked for cannot be had: when it is not
in the package, when it cannot start, and for each node that it does not take. Here the CPU runs
something only if PROVIDERS names it.
"""

from __future__ import annotations

import difflib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nn_meter.builder.backends.base import Environment, Shapes
from nn_meter.builder.backends.executed import ExecutedGraph, ExecutedNode
from nn_meter.builder.backends.onnxruntime.asked import CPU, Provider
from nn_meter.builder.backends.onnxruntime.backend import (
    OnnxRuntimeBackend,
    OnnxRuntimeSession,
    import_onnxruntime,
    not_written,
)
from nn_meter.builder.backends.onnxruntime.graph import import_onnx, read_graph
from nn_meter.builder.backends.onnxruntime.plugins import (
    chosen,
    plugin_version,
    register_plugin,
)
from nn_meter.builder.backends.onnxruntime.probe import PROBE_SHAPE, probe_model
from nn_meter.errors import (
    ConfigError,
    DeviceError,
    GraphUnavailableError,
    ModelRejectedError,
)
from nn_meter.reference import reference_inputs

__all__ = ["OnnxRuntimeEPBackend", "Ran", "checked_graph"]

_PACKAGES = {
    "CANNExecutionProvider": "onnxruntime-cann",
    "CoreMLExecutionProvider": "onnxruntime on macOS",
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "DmlExecutionProvider": "onnxruntime-directml (Windows)",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "QNNExecutionProvider": "'onnxruntime-qnn<2' (since 2 it is a plug-in: see "
    "docs/devices/providers.md)",
    "ROCMExecutionProvider": "onnxruntime-rocm",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "WebGpuExecutionProvider": "onnxruntime-webgpu",
}
"""Which package brings a provider: said to whoever lacks it, and nothing else rests on it."""

_EVENT = "_kernel_time"
_MOST_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A node that ran, as the session's own profile has it.

    Attributes:
        name: Its name; of a node without one, made up by ONNX Runtime.
        op: Its operator.
        provider: The execution provider that ran it.
    """

    name: str
    op: str
    provider: str


class OnnxRuntimeEPBackend(OnnxRuntimeBackend):
    """ONNX Runtime on the execution providers of the key PROVIDERS."""

    tried = ("onnxruntime 1.24", "onnxruntime 1.27", "onnxruntime 1.31")
    _works = False

    @property
    def providers(self) -> tuple[Provider, ...]:
        if not (providers := super().providers):
            raise ConfigError(
                "backend_config.yaml: PROVIDERS must name the execution providers to run on, such "
                "as [CUDAExecutionProvider]; where a model runs is never guessed"
            )
        return providers

    @property
    def runs_here(self) -> bool:  # type: ignore[override]  # it depends on the configuration
        """Whether all that runs, runs on this processor for certain."""
        return [asked.name for asked in self.providers] == [CPU]

    @property
    def _names(self) -> list[str]:
        return [asked.name for asked in self.providers]

    @property
    def _mixes(self) -> bool:
        """Whether the CPU may run what the others do not take."""
        return CPU in self._names

    def describe(self) -> Environment:
        self._check()
        options = {
            asked.name: {
                **asked.options,
                **({"device": asked.device} if asked.device else {}),
                **({"plugin": plugin_version(asked)} if asked.plugin else {}),
            }
            for asked in self.providers
            if asked.options or asked.device or asked.plugin
        }
        return Environment(
            runtime="onnxruntime",
            version=str(import_onnxruntime().__version__),
            device=", ".join(self._names),
            threads=self.threads,
            options={
                "graph_optimization": self.graph_optimization,
                **({"provider_options": options} if options else {}),
            },
        )

    def test_connection(self) -> str:
        self._check()
        return super().test_connection()

    def open(self, converted_model: str, shapes: Shapes) -> OnnxRuntimeSession:
        self._check()
        return super().open(converted_model, shapes)

    def executed_graph(self, converted_model: str, shapes: Shapes) -> ExecutedGraph:
        """Run a model once, and read what ran.

        Raises:
            ModelRejectedError: ONNX Runtime or a provider refuses the model.
            GraphUnavailableError: A provider ran several nodes as one of its own, which says
                nothing of what is inside; or what ran is not the graph that was written down.
        """
        import_onnx()
        self._check()
        with tempfile.TemporaryDirectory(prefix="nn-meter-onnxruntime-") as name:
            folder = Path(name)
            path = folder / "optimized.onnx"
            options = self._with_profile(self._written_to(path), folder)
            try:
                session = self._session(converted_model, options)
            except Exception as exc:
                ran = self._ran(converted_model, shapes, folder)  # refused is refused here, too
                raise GraphUnavailableError(f"{not_written(exc)}; it runs {_said(ran)}") from exc
            ran = self._run(session, shapes)
            inputs = [tensor.name for tensor in session.get_inputs()]
            del session
            return checked_graph(read_graph(path, inputs), ran, _operators(path))

    def _ran(self, model: str, shapes: Shapes, folder: Path) -> list[Ran]:
        return self._run(self._open_for(model, self._with_profile(self._options(), folder)), shapes)

    def _run(self, session: Any, shapes: Shapes) -> list[Ran]:
        """Run a session once that writes a profile, and read that."""
        names = [tensor.name for tensor in session.get_inputs()]
        try:
            session.run(None, dict(zip(names, reference_inputs(shapes), strict=True)))
        except Exception as exc:
            raise ModelRejectedError(f"ONNX Runtime cannot run the model: {_words(exc)}") from exc
        finally:
            written = Path(session.end_profiling())
        return _read_profile(written)

    @staticmethod
    def _with_profile(options: Any, folder: Path) -> Any:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        return options

    # --- who runs what ---------------------------------------------------------------------------

    def _session(self, model: str, options: Any) -> Any:
        """An ``onnxruntime.InferenceSession`` of the providers asked for.

        Raises:
            DeviceError: One of them is not among those that the session came to have.
        """
        if not self._mixes:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return self._with_all(super()._session(model, options))

    def _with_all(self, session: Any) -> Any:
        """The session, if it came to have all providers that were asked for."""
        found = session.get_providers()
        if missing := [name for name in self._names if name not in found]:
            raise DeviceError(
                f"ONNX Runtime has {missing[0]}, but cannot start it here, and took "
                f"{', '.join(found)} instead: a device, a driver or a library is missing, or one "
                "of its options is wrong; onnxruntime says which when a session is made by hand"
            )
        return session

    def _open_for(self, model: str, options: Any) -> Any:
        """A session; where a provider leaves nodes to the CPU, the error names them."""
        try:
            return self._session(model, options)
        except DeviceError:
            raise
        except Exception as exc:
            raise ModelRejectedError(self._refusal(model, exc)) from exc

    def _opened(self, converted_model: str, shapes: Shapes, options: Any) -> OnnxRuntimeSession:
        session = self._open_for(converted_model, options)
        try:
            return OnnxRuntimeSession(session, reference_inputs(shapes))
        except Exception as exc:
            raise ModelRejectedError(f"ONNX Runtime refuses the model: {_words(exc)}") from exc

    def _refusal(self, model: str, exc: Exception) -> str:
        """Why a model is refused: nodes that would run elsewhere, or ONNX Runtime's own words."""
        words = f"ONNX Runtime refuses the model: {_words(exc)}"
        if self._mixes:
            return words
        with tempfile.TemporaryDirectory(prefix="nn-meter-onnxruntime-") as folder:
            try:
                options = self._with_profile(self._options(), Path(folder))
                session = self._with_all(super()._session(model, options))
                shapes = [[int(size) for size in t.shape[1:]] for t in session.get_inputs()]
                ran = self._run(session, shapes)
            except DeviceError:
                raise
            except Exception:  # noqa: BLE001 - then it is not for want of a provider
                return words
        left = [node for node in ran if node.provider not in self._names]
        if not left:
            return words
        return (
            f"{', '.join(self._names)} does not take all of the model: it would run {_said(left)}; "
            f"{CPU}, named last in PROVIDERS, may run these"
        )

    def _check(self) -> None:
        """Once: see that the providers are there, and that the first of them does run something."""
        if self._works:
            return
        ort = import_onnxruntime()
        available = list(ort.get_available_providers())
        for asked in self.providers:
            if asked.plugin:
                register_plugin(ort, asked)
                chosen(asked, ort.get_ep_devices())
            elif asked.name not in available:
                raise DeviceError(_not_there(ort, asked.name, available))
        with tempfile.TemporaryDirectory(prefix="nn-meter-onnxruntime-") as folder:
            path = Path(folder) / "probe.onnx"
            path.write_bytes(probe_model())
            try:
                ran = self._ran(str(path), [PROBE_SHAPE], Path(folder))
            except ModelRejectedError as exc:
                raise DeviceError(
                    f"{', '.join(self._names)} cannot run a model of one convolution and one "
                    f"relu: {exc}"
                ) from exc
        if not any(node.provider == self._names[0] for node in ran):
            raise DeviceError(
                f"{self._names[0]} runs nothing of a model of one convolution and one relu: ONNX "
                f"Runtime runs {_said(ran)}"
            )
        self._works = True


def checked_graph(
    graph: ExecutedGraph, ran: Sequence[Ran], operators: Sequence[tuple[tuple[str, str], bool]]
) -> ExecutedGraph:
    """The graph that was written down, if it is what ran, node by node.

    Args:
        graph: What was written down.
        ran: What ran.
        operators: Of each node of the graph its domain and operator, and whether that is one that
            ONNX Runtime knows: one that it does not was made by a provider, of any number of nodes.

    Returns:
        The graph; where several providers ran, each node's type begins with the name of its own.

    Raises:
        GraphUnavailableError: It is not what ran, or something in it can be anything.
    """
    if opaque := [f"{domain}:{op}" for (domain, op), known in operators if not known]:
        raise GraphUnavailableError(
            f"a provider made {', '.join(opaque[:_MOST_NAMED])} of a part of the model, and does "
            "not tell what is inside"
        )
    written = Counter(op for (_, op), _ in operators)
    found = Counter(node.op for node in ran)
    if written != found:
        differ = sorted((written - found) + (found - written))
        raise GraphUnavailableError(
            "ONNX Runtime ran other nodes than those that it wrote down: they differ in "
            f"{', '.join(differ[:_MOST_NAMED])}"
        )
    if len({node.provider for node in ran}) < 2:
        return graph
    named = {node.name: node.provider for node in ran}
    of_op: dict[str, set[str]] = {}
    for node in ran:
        of_op.setdefault(node.op, set()).add(node.provider)
    nodes = [
        _placed(node, op, named, of_op)
        for node, ((_, op), _) in zip(graph.nodes, operators, strict=True)
    ]
    return replace(graph, nodes=tuple(nodes))


def _placed(
    node: ExecutedNode, op: str, named: Mapping[str, str], of_op: Mapping[str, set[str]]
) -> ExecutedNode:
    provider = named.get(node.name) or (min(of_op[op]) if len(of_op[op]) == 1 else "")
    if not provider:
        raise GraphUnavailableError(f"it cannot be told which provider ran the {op} {node.name!r}")
    return replace(node, type=f"{provider}:{node.type}")


def _operators(path: Path) -> list[tuple[tuple[str, str], bool]]:
    """Domain and operator of each node of a model, and whether ONNX Runtime knows that."""
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    known = {(_domain(s.domain), str(s.name)) for s in state.get_all_operator_schema()}
    nodes = import_onnx().load(str(path), load_external_data=False).graph.node
    keys = [(_domain(node.domain), str(node.op_type)) for node in nodes]
    return [(key, key in known) for key in keys]


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else str(name)


def _read_profile(path: Path) -> list[Ran]:
    events = json.loads(path.read_text(encoding="utf-8"))
    return [
        Ran(
            name=str(event["name"]).removesuffix(_EVENT),
            op=str(event["args"].get("op_name", "")),
            provider=str(event["args"].get("provider", "")),
        )
        for event in events
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_EVENT)
    ]


def _said(ran: Sequence[Ran]) -> str:
    """Which nodes run where: ``Conv, Relu on CPUExecutionProvider``."""
    where: dict[str, list[str]] = {}
    for node in ran:
        where.setdefault(node.provider, []).append(node.op)
    told = []
    for provider, ops in where.items():
        more = f" and {len(ops) - _MOST_NAMED} more" if len(ops) > _MOST_NAMED else ""
        told.append(f"{', '.join(ops[:_MOST_NAMED])}{more} on {provider}")
    return "; ".join(told) or "nothing"


def _words(exc: Exception) -> str:
    """What ONNX Runtime says, in one line."""
    return " ".join(str(exc).split())


def _not_there(ort: ModuleType, name: str, available: Sequence[str]) -> str:
    there = f"ONNX Runtime {ort.__version__} has {', '.join(available)}"
    if name in _PACKAGES:
        return (
            f"there is no {name} here: {there}; pip install {_PACKAGES[name]} brings it, in a "
            "virtual environment of its own without another onnxruntime, which PYTHON in "
            "backend_config.yaml names"
        )
    near = difflib.get_close_matches(name, {*_PACKAGES, *ort.get_all_providers()}, n=1)
    meant = f"; did you mean {near[0]}?" if near and near[0] != name else ""
    return f"there is no execution provider {name} here: {there}{meant}"
