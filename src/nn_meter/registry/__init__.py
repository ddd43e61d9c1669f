"""What there is to choose from: operators, test cases and backends, built in or added.

An `Entry` says where a class is; `load` imports it. Nothing else here imports what it lists, so
listing is quick and needs no framework. Worker processes get entries as JSON and load them in
virtual environments of their own, so this package needs only the standard library until a file is
read or written.

Three origins:

* **built in**: the tables in `builtin`.
* **registered**: a meta file names a package folder; `register` imports the class, then writes an
  item with the meta file's keys to ``registry.yaml`` in ``~/.nn_meter`` (or ``NN_METER_HOME``).
* **entry point** of an installed package; `plugins` says how it is named.

A name that exists cannot be registered. When one comes up twice all the same (a plug-in brings the
name of a built-in, say), the first of built-in, registered, entry point stays, and the other one is
ignored with a warning: a bad plug-in costs the user that plug-in and nothing else.

Who lives here, lowest first: `entry`, `strict_yaml`, `builtin`, `plugins`, `files` (meta files and
the registry's own), `loading`, `catalogue` (what the commands do).
"""

from nn_meter.registry.catalogue import entries, find, register, unregister
from nn_meter.registry.entry import IMPLEMENTS, Entry, Kind
from nn_meter.registry.files import home, read_meta_file, registry_path
from nn_meter.registry.loading import load

__all__ = [
    "IMPLEMENTS",
    "Entry",
    "Kind",
    "entries",
    "find",
    "home",
    "load",
    "read_meta_file",
    "register",
    "registry_path",
    "unregister",
]
