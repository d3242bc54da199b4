"""Errors on one line."""

import pytest

from jvdm.core.errors import one_line


@pytest.mark.parametrize(
    ("message", "limit", "expected"),
    [
        ("a\n  b\tc ", None, "a b c"),
        (OSError(28, "No space\nleft"), None, "[Errno 28] No space left"),
        (EOFError(), None, "EOFError"),
        ("", None, ""),
        ("abcdef", 3, "abc…"),
        ("abc", 3, "abc"),
    ],
)
def test_one_line(message, limit, expected):
    assert one_line(message, limit=limit) == expected
