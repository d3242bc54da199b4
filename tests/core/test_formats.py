"""Format numbers: what is read, and what is refused in one line."""

import pytest

from jvdm.core import formats
from jvdm.core.errors import UserError


def test_a_file_without_a_number_is_of_format_1():
    assert formats.check({}, 2, "f") == 1
    assert formats.check({"format": 2}, 2, "f") == 2


def test_a_newer_format():
    message = r"^run/f: written by a newer jvdm, in format 3; this one reads formats up to 2: upgrade jvdm$"
    with pytest.raises(formats.NewerFormat, match=message):
        formats.check({"format": 3}, 2, "run/f")


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None, [2]])
def test_no_format(value):
    with pytest.raises(UserError, match="must be an integer from 1 to 2") as error:
        formats.check({"format": value}, 2, "f")
    assert not isinstance(error.value, formats.NewerFormat)
