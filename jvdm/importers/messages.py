"""Parts of error messages: short and on one line, whatever a file holds."""

from typing import Any


def brief(text: str, limit: int = 60) -> str:
    """At most `limit` characters of a text, with line breaks and the like escaped."""
    return repr(text if len(text) <= limit else f"{text[: limit - 3]}...")[1:-1]


def kind(value: Any) -> str:
    """The type of a value with its article, such as "an int"."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"
