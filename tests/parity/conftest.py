"""Fixtures of the replays."""

import pytest

pytest.register_assert_rewrite("helpers.replays")

from helpers import replays  # noqa: E402


@pytest.fixture
def check():
    """(quantity, ours, theirs, tolerance): asserts the deviation, and prints it."""
    return replays.check
