"""A user of each test's own."""

from __future__ import annotations

import pytest
from driving import User


@pytest.fixture
def user(tmp_path) -> User:
    """A user in an empty folder, who has registered nothing."""
    folder = tmp_path / "here"
    folder.mkdir()
    return User(folder=folder, home=tmp_path / "home")
