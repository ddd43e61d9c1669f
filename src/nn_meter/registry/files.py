"""The files of what users register: their meta files, and ``registry.yaml``, which keeps them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nn_meter.errors import RegistrationError
from nn_meter.registry import strict_yaml
from nn_meter.registry.entry import NOUNS, Entry, Kind, check_implement, check_name

if TYPE_CHECKING:
    import yaml

__all__ = [
    "check_package",
    "home",
    "locked",
    "read_meta_file",
    "read_registry",
    "registry_path",
    "write_registry",
]

_LOCATION = ("package_location", "class_module", "class_name")
_KEYS: dict[Kind, tuple[str, ...]] = {
    "operator": ("builtin_name", "implement", *_LOCATION),
    "testcase": ("builtin_name", "implement", *_LOCATION),
    "backend": ("builtin_name", *_LOCATION),
}
_CONFIG_KEY = "defaultConfigFile"
_OPTIONAL_KEYS: dict[Kind, tuple[str, ...]] = {
    "operator": (),
    "testcase": (),
    "backend": (_CONFIG_KEY,),
}
_VERSION_KEY, _VERSION = "version", "1"
_SECTIONS: dict[str, Kind] = {f"{kind}s": kind for kind in NOUNS}
_HEADER = "# Written by 'nn-meter register' and 'nn-meter unregister'.\n"
_LOCK_TIMEOUT_S = 10.0


def home() -> Path:
    """Return the folder of what is registered: ``$NN_METER_HOME``, else ``~/.nn_meter``.

    Raises:
        RegistrationError: Nobody knows where the home folder is.
    """
    try:
        return Path(os.environ.get("NN_METER_HOME") or "~/.nn_meter").expanduser().absolute()
    except RuntimeError as exc:
        raise RegistrationError(
            "the home folder is not known; set NN_METER_HOME to a folder for nn-meter's registry"
        ) from exc


def registry_path() -> Path:
    """Return the path of the file that keeps what is registered."""
    return home() / "registry.yaml"


# --- meta files -----------------------------------------------------------------------------------


def read_meta_file(kind: Kind, path: str | Path) -> Entry:
    """Read and check a meta file; the class is not imported yet.

    Relative paths in it count from the folder that it lies in, and ``~`` is the home folder.

    Raises:
        RegistrationError: It cannot be read, a key is missing, unknown, empty or no text, a name
            cannot be used, or the package folder is not there.
    """
    path = Path(path)
    entry = _entry(kind, strict_yaml.read(path), f"{path}: ")
    folder = _absolute(path, entry.package_location or "", "package_location")
    check_package(folder, f"{path}: package_location ")
    config = entry.default_config_file
    if config is not None:
        config_path = _absolute(path, config, _CONFIG_KEY)
        if not _holds(config_path.is_file):
            raise RegistrationError(f"{path}: {_CONFIG_KEY} {config_path} is no file")
        config = str(config_path)
    return replace(entry, package_location=str(folder), default_config_file=config)


def check_package(folder: Path, where: str) -> None:
    """Refuse a folder that is no package.

    Raises:
        RegistrationError: It is not there, or has no ``__init__.py``.
    """
    if not _holds(folder.is_dir):
        raise RegistrationError(f"{where}{folder} is no folder")
    if not _holds((folder / "__init__.py").is_file):
        raise RegistrationError(
            f"{where}{folder} is no package: put an __init__.py there, an empty one will do"
        )


def _absolute(meta_path: Path, given: str, key: str) -> Path:
    try:
        return Path(os.path.abspath(meta_path.parent / Path(given).expanduser()))  # noqa: PTH100
    except (RuntimeError, ValueError) as exc:
        raise RegistrationError(f"{meta_path}: {key} {given!r} is no path: {exc}") from exc


def _holds(test: Callable[[], bool]) -> bool:
    """Ask the disk, where no permission and a name too long for a file mean no."""
    try:
        return test()
    except OSError:
        return False


def _entry(kind: Kind, node: yaml.Node | None, where: str) -> Entry:
    """Make an entry of a meta file's keys, which are also those of an item in the registry."""
    values = strict_yaml.text_fields(node, _KEYS[kind], _OPTIONAL_KEYS[kind], where)
    module, class_name = values["class_module"], values["class_name"]
    check_name(kind, values["builtin_name"], f"{where}builtin_name: ")
    check_implement(kind, values.get("implement"), where)
    if module.endswith(".py"):
        raise RegistrationError(f"{where}class_module is {module!r}: leave out the '.py'")
    if not all(part.isidentifier() for part in module.split(".")):
        raise RegistrationError(f"{where}class_module: {module!r} cannot be the name of a module")
    if not class_name.isidentifier():
        raise RegistrationError(f"{where}class_name: {class_name!r} cannot be the name of a class")
    return Entry(
        kind=kind,
        name=values["builtin_name"],
        origin="registered",
        implement=values.get("implement"),
        package_location=values["package_location"],
        class_module=module,
        class_name=class_name,
        default_config_file=values.get(_CONFIG_KEY),
    )


# --- registry.yaml --------------------------------------------------------------------------------


def read_registry() -> list[Entry]:
    """Read ``registry.yaml``; no file means that nothing is registered.

    The folders that it names need not be there: that costs their entries, when they are loaded.

    Raises:
        RegistrationError: The file cannot be read or is damaged; says what to do.
    """
    path = registry_path()
    try:
        path.stat()
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise RegistrationError(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        return _parse(path)
    except RegistrationError as exc:
        raise RegistrationError(
            f"{exc}. This registry is damaged and was left as it is: mend the file, or move it "
            "away and register your operators, test cases and backends again"
        ) from exc


def _parse(path: Path) -> list[Entry]:
    top = strict_yaml.mapping(strict_yaml.read(path), [_VERSION_KEY, *_SECTIONS], f"{path}: ")
    version = top.pop(_VERSION_KEY, None)
    if version is None or version.value != _VERSION:
        raise RegistrationError(f"{path}: {_VERSION_KEY} should be {_VERSION}")
    result: dict[tuple[Kind, str, str | None], Entry] = {}
    for section, node in top.items():
        for number, item in enumerate(strict_yaml.sequence(node, f"{path}: {section} "), start=1):
            where = f"{path}: {section}, item {number}: "
            entry = _entry(_SECTIONS[section], item, where)
            for location in (entry.package_location, entry.default_config_file):
                if location is not None and not Path(location).is_absolute():
                    raise RegistrationError(f"{where}{location} is no absolute path")
            key = (entry.kind, entry.name, entry.implement)
            if key in result:
                raise RegistrationError(f"{where}{entry} is there already")
            result[key] = entry
    return list(result.values())


@contextmanager
def locked() -> Iterator[None]:
    """Keep other processes from changing the registry between reading and writing it.

    Raises:
        RegistrationError: The lock is not free for long, or the disk refuses something.
    """
    import filelock

    path = registry_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock", timeout=_LOCK_TIMEOUT_S):
            yield
    except filelock.Timeout as exc:
        raise RegistrationError(
            f"{path}: another nn-meter has been changing it for {_LOCK_TIMEOUT_S:g} s; try again"
        ) from exc
    except OSError as exc:
        raise RegistrationError(f"{path}: cannot be written: {exc}") from exc


def write_registry(registered: Sequence[Entry]) -> None:
    """Replace ``registry.yaml``, in one step.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    import yaml

    data: dict[str, Any] = {_VERSION_KEY: int(_VERSION)}
    for section, kind in _SECTIONS.items():
        data[section] = [_item(entry) for entry in registered if entry.kind == kind]
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    strict_yaml.replace_file(registry_path(), _HEADER + text)


def _item(entry: Entry) -> dict[str, str]:
    values = {
        "builtin_name": entry.name,
        "implement": entry.implement,
        "package_location": entry.package_location,
        "class_module": entry.class_module,
        "class_name": entry.class_name,
        _CONFIG_KEY: entry.default_config_file,
    }
    return {key: value for key, value in values.items() if value is not None}
