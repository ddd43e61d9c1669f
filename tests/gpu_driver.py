"""The Vulkan driver that tests run on."""

from __future__ import annotations

import os

import pytest

from nn_meter.builder.backends.vulkan.devices import cache_folder

CHOICES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")


def driver_environment() -> dict[str, str]:
    """What the environment of processes that use a GPU should have.

    A driver that the environment names already stays; else it is the one in software that
    ``scripts/system-packages`` unpacks. Without that the test is skipped: what a GPU of this
    computer would say no test knows.
    """
    if any(os.environ.get(name) for name in CHOICES):
        return {}
    driver = cache_folder() / "swiftshader" / "vk_swiftshader_icd.json"
    if not driver.is_file():
        pytest.skip(f"needs a Vulkan driver: {driver}, which scripts/system-packages gets")
    return {"VK_ICD_FILENAMES": str(driver)}
