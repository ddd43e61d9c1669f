"""Serves a device on a port of 127.0.0.1 until a signal comes; prints the port."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from .daemon import Device


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m device", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the device's root; made")
    root: Path = parser.parse_args().root
    (root / "data/local/tmp").mkdir(parents=True, exist_ok=True)
    (root / "bin").mkdir(exist_ok=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with Device(root) as device:
        sys.stdout.write(f"{device.port}\n")
        sys.stdout.flush()
        ended.wait()


if __name__ == "__main__":
    main()
