"""The errors of nn-Meter, and the exit code of each branch.

::

    NNMeterError                     1
    ├── ConfigError                  3   a YAML file, a key, a value
    ├── WorkspaceError               4   a workspace that is missing, exists, or is not one
    ├── RegistrationError            5   what users add: meta files, packages, names
    ├── OperatorError                6   an operator or a test case that cannot be built
    │   └── ShapeError                   ... because of the shape that reaches it
    │       └── OddSizeError                 ... which an op would have to halve, and cannot
    ├── BackendError                 7   a backend: unknown, or not able to do what was asked
    │   ├── NotInstalledError            ... because a package is missing
    │   ├── DeviceError                  ... because the device is not there
    │   ├── ModelRejectedError           ... because its runtime refuses a model
    │   ├── ConversionError              ... because a model cannot be converted for it
    │   └── GraphUnavailableError        ... because it cannot tell what it executes
    ├── WorkerError                  8   the process in which a runtime runs
    │   ├── WorkerCrashedError
    │   └── TimeLimitError
    ├── ResultFileError              9   a JSON file or dict of test cases or results; the sample
    │                                    store
    ├── DetectionError              10   results from which no rules can be made
    └── ModelFileError              11   a user's model file that cannot be read as a graph

Every error that a user can cause is one of these. Its message says what was wrong, where, and what
to do. A foreign exception is chained to the error that it became (``raise … from exc``).
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BackendError",
    "ConfigError",
    "ConversionError",
    "DetectionError",
    "DeviceError",
    "GraphUnavailableError",
    "ModelFileError",
    "ModelRejectedError",
    "NNMeterError",
    "NotInstalledError",
    "OddSizeError",
    "OperatorError",
    "RegistrationError",
    "ResultFileError",
    "ShapeError",
    "TimeLimitError",
    "WorkerCrashedError",
    "WorkerError",
    "WorkspaceError",
]


class NNMeterError(Exception):
    """The root: catch this to catch everything that nn-Meter raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(NNMeterError):
    """A configuration file, key or value cannot be used."""

    exit_code: ClassVar[int] = 3


class WorkspaceError(NNMeterError):
    """A workspace is missing, exists already, or is not one."""

    exit_code: ClassVar[int] = 4


class RegistrationError(NNMeterError):
    """An operator, test case or backend of the user's cannot be registered, found or loaded."""

    exit_code: ClassVar[int] = 5


class OperatorError(NNMeterError):
    """An operator or a test case cannot be built into a model."""

    exit_code: ClassVar[int] = 6


class ShapeError(OperatorError):
    """An operator cannot take the shape that reaches it."""


class OddSizeError(ShapeError):
    """An operator halves an axis, and an odd size reaches it."""


class BackendError(NNMeterError):
    """A backend is unknown, or cannot do what was asked of it."""

    exit_code: ClassVar[int] = 7


class NotInstalledError(BackendError):
    """A package that is needed is not installed."""

    @classmethod
    def for_extra(cls, package: str, extra: str) -> NotInstalledError:
        """Name the package that is missing, and the extra of nn-meter that brings it."""
        return cls(f"{package} is not installed; pip install 'nn-meter[{extra}]' brings it")


class DeviceError(BackendError):
    """The device that a backend should run on is not there."""


class ModelRejectedError(BackendError):
    """A runtime refuses a model; the message keeps the runtime's own words."""


class ConversionError(BackendError):
    """A model cannot be turned into one that the runtime loads."""


class GraphUnavailableError(BackendError):
    """A runtime, or this version of it, does not tell what it executes."""


class WorkerError(NNMeterError):
    """The process in which a runtime runs did not do its work."""

    exit_code: ClassVar[int] = 8


class WorkerCrashedError(WorkerError):
    """The process ended while it worked."""


class TimeLimitError(WorkerError):
    """The process took longer than its time limit and was killed."""


class ResultFileError(NNMeterError):
    """A file or dict of test cases or results, or the sample store, cannot be used."""

    exit_code: ClassVar[int] = 9


class DetectionError(NNMeterError):
    """No rule can be made from the results that are there."""

    exit_code: ClassVar[int] = 10


class ModelFileError(NNMeterError):
    """A user's model file cannot be read as a graph; the message names the file."""

    exit_code: ClassVar[int] = 11
