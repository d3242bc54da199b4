"""The one exception that a user's mistake raises."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can fix: one line that says what, where and what would be right.

    `main.py` prints the message on stderr and exits with a non-zero status; everything else
    propagates as a traceback, because it is a defect of jvdm.
    """


def unknown(kind: str, value: object, choices: Iterable[str]) -> UserError:
    """The error for a name that is not among `choices`, with the nearest match if there is one."""
    choices = sorted(choices)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {value!r}{hint} (choices: {', '.join(choices) or 'none'})")


def wrong_type(field: str, value: object, wanted: type) -> UserError:
    """The error for a value that is not of the type of its field."""
    article = "an" if wanted.__name__[0] in "aeiou" else "a"
    return UserError(f"{field} is {value!r}, not {article} {wanted.__name__}")


def one_line(message: object, *, limit: int | None = None) -> str:
    """A message, or that of an error, on one line; an error without a message gives its type.

    Args:
        message: any text or exception.
        limit: characters after which the line is cut and ends in "…"; None never cuts.
    """
    text = " ".join(str(message).split())
    if not text and isinstance(message, BaseException):
        text = type(message).__name__
    return text if limit is None or len(text) <= limit else text[:limit] + "…"
