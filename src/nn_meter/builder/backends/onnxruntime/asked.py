"""The key PROVIDERS: which execution providers are asked for, and with which options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nn_meter.errors import ConfigError

__all__ = ["CPU", "Provider", "asked_providers"]

CPU = "CPUExecutionProvider"
"""What ONNX Runtime falls back to."""

_PLUGIN, _DEVICE = "plugin", "device"
_KEY = "backend_config.yaml: PROVIDERS"


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: As ONNX Runtime has it.
        options: Its own options, as text.
        plugin: The library that has it, or a package that says where that is; empty: ONNX Runtime.
        device: Of a plug-in, which of its devices, by kind; empty: the only one.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    plugin: str = ""
    device: str = ""


def asked_providers(configs: Mapping[str, Any]) -> tuple[Provider, ...]:
    """The providers that a configuration asks for, most wanted first.

    Args:
        configs: The keys of ``backend_config.yaml``. PROVIDERS is a list of names; one with options
            is a mapping of its name to them.

    Raises:
        ConfigError: PROVIDERS is something else, or asks for what cannot be.
    """
    given = configs.get("PROVIDERS")
    if given is None:
        return ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError(f"{_KEY} must be a list of execution providers, but found {given!r:.80}")
    found = tuple(_read(given))
    names = [asked.name for asked in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{_KEY} names {twice[0]} twice")
    if len({bool(asked.plugin) for asked in found if asked.name != CPU}) > 1:
        raise ConfigError(f"{_KEY}: ONNX Runtime takes plug-ins or its own providers, not both")
    if CPU in names[:-1]:
        raise ConfigError(
            f"{_KEY}: {CPU} takes every node that comes to it, so nothing behind it would run; "
            "name it last"
        )
    return found


def _read(given: Sequence[Any]) -> Iterator[Provider]:
    for each in given:
        if isinstance(each, str) and each:
            yield Provider(each)
            continue
        if not isinstance(each, Mapping) or len(each) != 1:
            raise ConfigError(
                f"{_KEY}: {each!r:.80} is no execution provider; write its name, or with options "
                "'- NameExecutionProvider: {option: value}'"
            )
        ((name, options),) = each.items()
        if not isinstance(name, str) or not isinstance(options or {}, Mapping):
            raise ConfigError(f"{_KEY}: the options of {name} must be 'option: value' lines")
        texts = {str(key): _text(value) for key, value in (options or {}).items()}
        plugin = texts.pop(_PLUGIN, "")
        device = texts.pop(_DEVICE, "").upper() if plugin else ""
        yield Provider(name, texts, plugin, device)


def _text(value: Any) -> str:
    """As ONNX Runtime reads an option."""
    return str(int(value)) if isinstance(value, bool) else str(value)
