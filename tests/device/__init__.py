"""A phone without a phone, for tests: a device that speaks adb's protocol, and what lies on it.

``with Phone() as phone`` starts an adb server of its own on a free port, a device on another, and
connects the two; ``phone.device.faults`` is what goes wrong. It proves that the parts work
together with the real adb; it is no Android, no ARM processor, no GPU, and no measure of one.
"""

from .daemon import FEATURES, Device
from .faults import Fault
from .phone import AdbServer, Phone

__all__ = ["FEATURES", "AdbServer", "Device", "Fault", "Phone"]
