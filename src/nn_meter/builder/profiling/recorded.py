"""Executed graphs recorded elsewhere: prints of the models of a workspace go into its store.

A print belongs to the model that it is named after. Test cases of which all prints are there then
have results like those of a run that asked for graphs only, and are judged like them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nn_meter.builder.backends.base import Environment
from nn_meter.builder.backends.executed import ExecutedGraph
from nn_meter.builder.backends.recorded import FORMATS, Format, guess_format, read_print
from nn_meter.builder.nn_modules.info import hash_model
from nn_meter.builder.profiling import results
from nn_meter.builder.profiling.graphs import outputs_digest
from nn_meter.builder.profiling.interface import model_settings
from nn_meter.builder.profiling.measure import Model
from nn_meter.builder.profiling.references import fill_references
from nn_meter.builder.profiling.results import TestCases
from nn_meter.builder.profiling.run import case_models
from nn_meter.builder.profiling.store import Failure, Store, graph_reference
from nn_meter.builder.workspace import Workspace, write_json
from nn_meter.errors import ConfigError, ResultFileError

__all__ = ["Imported", "choose_format", "find_files", "import_graphs"]

log = logging.getLogger(__name__)

_UNKNOWN = "unknown"
_TIME_LIMIT_S = 300.0


@dataclass(kw_only=True)
class Imported:
    """What one call of ``import_graphs`` did.

    Attributes:
        backend: The name that results have.
        environment: What was recorded, in words.
        testcases: Those of which all graphs are known, as profiled results.
        prints: How many prints were read.
        missing: Test case -> its models without a print.
        situations: How many situations of ``testcases`` there are, and how many of them lack a
            print.
        unmatched: Files that belong to no model.
    """

    backend: str
    environment: str
    testcases: TestCases = field(default_factory=dict)
    prints: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)
    situations: tuple[int, int] = (0, 0)
    unmatched: list[Path] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RecordedEnvironment(Environment):
    """Where prints were made: no more is known of it than what was told."""

    def to_json(self) -> dict[str, Any]:
        """As plain values, without those that nobody told."""
        told = super().to_json()
        return {key: told[key] for key in ("runtime", "version", "device", "options")}


# --- files ---------------------------------------------------------------------------------------


def find_files(given: Sequence[Path], kind: Format | None) -> list[Path]:
    """The files that may be prints: those given, and those of a folder by their suffix.

    Args:
        given: Files, and folders with all that is below them.
        kind: Their format; None: any.

    Raises:
        ResultFileError: There is no such file, or none in a folder.
    """
    suffixes = {
        suffix
        for known in ([kind] if kind is not None else FORMATS.values())
        for suffix in known.suffixes
    }
    found: dict[Path, None] = {}
    for path in given:
        if not path.exists():
            raise ResultFileError(f"{path}: there is no such file or folder")
        if not path.is_dir():
            if not path.is_file():
                raise ResultFileError(f"{path}: is no regular file")
            found[path] = None
            continue
        files = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()
        )
        if not files:
            raise ResultFileError(
                f"{path}: there is no print in this folder; prints end in "
                f"{', '.join(sorted(suffixes))}"
            )
        found.update(dict.fromkeys(files))
    return list(found)


def choose_format(files: Sequence[Path], name: str | None) -> Format:
    """The format of prints: the one that is named, or what the files surely are.

    Raises:
        ConfigError: It is not named, and cannot be told.
        ResultFileError: A file cannot be read.
    """
    if name is not None:
        return FORMATS[name]
    found = {kind.name for file in files if (kind := guess_format(file)) is not None}
    if len(found) == 1:
        return FORMATS[found.pop()]
    told = f"could be of {' and '.join(sorted(found))}" if found else "tell no format"
    raise ConfigError(
        f"the files ({files[0]}{', …' if len(files) > 1 else ''}) {told}; "
        f"give --format {' or '.join(FORMATS)}"
    )


# --- importing -----------------------------------------------------------------------------------


def import_graphs(
    workspace: Workspace,
    files: Sequence[Path],
    kind: Format,
    *,
    version: str | None = None,
    device: str | None = None,
) -> Imported:
    """Take prints of the models of a workspace for what their runtime executes of them.

    All files are read before anything is written. Prints of earlier calls stay, where runtime,
    version, device and models are the same: so prints may come in several lots.

    Args:
        workspace: Whose models they are of; 'ruletest generate' made these.
        files: The prints, each named after its model.
        kind: Their format.
        version: Of the runtime that printed them.
        device: That it ran on.

    Returns:
        What came of it; ``testcases`` are ready for ``detect_fusion_rule``. Where there are none,
        no results are written.

    Raises:
        ConfigError: The workspace's EVIDENCE takes no graphs.
        ResultFileError: A print cannot be read, or no print belongs to a model.
    """
    if workspace.ruletest.EVIDENCE not in ("auto", "graph"):
        raise ConfigError(
            f"{workspace.ruletest_file}: EVIDENCE is {workspace.ruletest.EVIDENCE}, and prints "
            "tell executed graphs, no latencies; set it to auto or graph"
        )
    environment = RecordedEnvironment(
        runtime=kind.name,
        version=version or _UNKNOWN,
        device=device or _UNKNOWN,
        options={"recorded": True, **model_settings(workspace)},
    )
    found = Imported(
        backend=f"imported_{kind.name}",
        environment=(
            f"{kind.name}, version {environment.version}, on device {environment.device}; recorded"
        ),
    )
    origin = workspace.results_dir / "origin_testcases.json"
    if not origin.exists():
        raise ResultFileError(f"{origin}: is not there yet; run 'nn-meter ruletest generate' first")
    testcases = results.read_testcases(origin)
    around = results.read_situations(workspace)
    cases = {name: case_models(workspace, name, case) for name, case in testcases.items()}
    situations = {
        name: {
            situation: case_models(workspace, f"{name}, {situation}", models)
            for situation, models in around.get(name, {}).items()
        }
        for name in testcases
    }
    graphs = _read(files, kind, _by_name(cases, situations), found)
    models = _with_references(cases, situations, graphs)
    with workspace.lock(), Store(workspace.store_file) as store:
        number = store.environment(found.backend, environment)
        for digest, graph in graphs.items():
            store.add_graph(number, digest, graph, outputs_digest(models[digest]))
        known = {digest for digest in models if _has_graph(store, number, digest)}
        found.missing = {
            name: missing
            for name, case in cases.items()
            if (missing := [model.path.name for model in case if model.hash not in known])
        }
        for name, case in cases.items():
            if name in found.missing:
                continue
            found.testcases[name] = testcases[name]
            for model in case:
                entry = testcases[name][model.name]
                entry["graph"] = graph_reference(number, model.hash)
        _count_situations(found, situations, known)
        if found.testcases:
            _write(workspace, found, environment, testcases)
    return found


def _by_name(
    cases: Mapping[str, Sequence[Model]],
    situations: Mapping[str, Mapping[str, Sequence[Model]]],
) -> dict[str, Model]:
    """The models of a workspace by the names of their files, without what tells the format."""
    listed = [model for case in cases.values() for model in case]
    listed += [
        model for around in situations.values() for case in around.values() for model in case
    ]
    return {(m.path.name if m.path.is_dir() else m.path.stem): m for m in listed}


def _read(
    files: Sequence[Path], kind: Format, models: Mapping[str, Model], found: Imported
) -> dict[str, ExecutedGraph]:
    """Read the prints that belong to a model: graphs by the hash of the model."""
    prints: dict[str, Path] = {}
    copies = []
    for file in files:
        name = next((name for name in _names(file) if name in models), None)
        if name is None:
            found.unmatched.append(file)
        elif _is_copy(file, models[name]):
            copies.append(file)
        elif name in prints:
            raise ResultFileError(
                f"{file}: {prints[name]} is a print of the same model; leave one of them out"
            )
        else:
            prints[name] = file
    if not prints:
        raise ResultFileError(_nothing_found(copies, found.unmatched, models))
    graphs: dict[str, ExecutedGraph] = {}
    for name, file in prints.items():
        model = models[name]
        graph = read_print(file, kind, model.path)
        if graph.inputs is not None and len(graph.inputs) != len(model.shapes):
            raise ResultFileError(
                f"{file}: is of another model: it has {len(graph.inputs)} inputs, and {model.path} "
                f"{len(model.shapes)}"
            )
        if model.hash in graphs and _types(graphs[model.hash]) != _types(graph):
            log.warning(
                "%s: another print of an equal model tells something else; the later one counts",
                file,
            )
        graphs[model.hash] = graph
    found.prints = len(prints)
    return graphs


def _names(file: Path) -> Iterator[str]:
    """What the model of a print may be called, the likeliest first.

    ``name.xml`` and ``name.anything.xml`` are of ``name``, and so is all in a folder ``name``.
    """
    parts = file.name.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end])
    for folder in file.absolute().parents:
        yield folder.name


def _is_copy(file: Path, model: Model) -> bool:
    """Whether a file is the model, and no print of it."""
    if file.suffix.lower() != model.path.suffix.lower() or not model.path.is_file():
        return False
    return hash_model(file) == hash_model(model.path)


def _nothing_found(
    copies: Sequence[Path], unmatched: Sequence[Path], models: Mapping[str, Model]
) -> str:
    if copies:
        return (
            f"{copies[0]}: is the model itself, and not what a runtime made of it; load it in the "
            "runtime, and give what that writes"
        )
    return (
        f"{unmatched[0]}: is named after no model of the workspace; a print is called as the file "
        f"of its model, like {next(iter(models), 'BF_conv_relu_block')}{unmatched[0].suffix}"
    )


def _with_references(
    cases: Mapping[str, Sequence[Model]],
    situations: Mapping[str, Mapping[str, Sequence[Model]]],
    graphs: Mapping[str, ExecutedGraph],
) -> dict[str, Model]:
    """All models by hash, those of test cases with what they compute, as a run has them."""
    models = {model.hash: model for case in cases.values() for model in case}
    bare = [m for m in models.values() if m.reference is None and m.hash in graphs]
    if bare:
        references = fill_references(bare, time_limit_s=_TIME_LIMIT_S)
        models |= {m.hash: replace(m, reference=references.get(m.hash)) for m in bare}
    for around in situations.values():
        for case in around.values():
            for model in case:
                models.setdefault(model.hash, model)
    return models


def _has_graph(store: Store, environment: int, digest: str) -> bool:
    stored = store.graph(environment, digest)
    return stored is not None and not isinstance(stored.graph, Failure)


def _types(graph: ExecutedGraph) -> Counter[str]:
    return Counter(node.type for node in graph.nodes)


def _count_situations(
    found: Imported,
    situations: Mapping[str, Mapping[str, Sequence[Model]]],
    known: set[str],
) -> None:
    asked = [case for name in found.testcases for case in situations[name].values()]
    lacking = [case for case in asked if not all(model.hash in known for model in case)]
    found.situations = (len(asked), len(lacking))


def _write(
    workspace: Workspace, found: Imported, environment: Environment, testcases: TestCases
) -> None:
    """Write what a run writes: the results, and of what they are."""
    folder = results.results_folder(workspace, found.backend, environment)
    plain = {
        name: {
            model: {key: entry[key] for key in ("model", "shapes")} for model, entry in case.items()
        }
        for name, case in testcases.items()
    }
    write_json(folder / "origin_testcases.json", plain)
    view = results.profiled_view(found.testcases, detail=workspace.ruletest.DETAIL)
    results.write_results(workspace, folder, "profiled_results.json", view)
    results.write_errors(
        workspace,
        [
            f"{name}: {model}: there is no print of it"
            for name, models in found.missing.items()
            for model in models
        ],
    )
