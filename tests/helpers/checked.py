"""The checker of every call in jvdm, which tests/conftest.py gives to jaxtyping's import hook.

It is beartype, with two settings of what annotations mean:

1. An int is a float, as in PEP 484.
2. `Self` is any object: jaxtyping decorates methods one by one, and alone they do not know their class.
"""

from typing import Any, Self

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def calls(function):
    """The function, which raises where an argument or the result is not as annotated."""
    hints = function.__annotations__
    hints.update({name: Any for name, hint in hints.items() if hint is Self})
    return _beartype(function)
