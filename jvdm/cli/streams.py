"""Standard output and error that neither a closed pipe nor a terminal's encoding can break.

1. Where nobody reads any more (`| head -3`), what is written is dropped, and the loops are asked to stop
   as by a signal: they save, and the exit status is 141.
2. What the encoding cannot write is replaced: "±" by "+-" on an ASCII terminal, other characters by their
   ASCII form or an escape, such as the bytes of a file's name that are not UTF-8.
"""

import codecs
import contextlib
import os
import sys
import unicodedata
from typing import Any, TextIO

_ASCII = {"±": "+-", "×": "x", "λ": "lambda", "γ": "gamma", "σ": "sigma", "·": "*", "–": "-", "—": "-"}
_ERRORS = "jvdm.ascii"


def guard() -> None:
    """Replace `sys.stdout` and `sys.stderr` by guarded ones."""
    codecs.register_error(_ERRORS, _replace)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # as pythonw has it
            continue
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not a file, as in a notebook
            stream.reconfigure(errors=_ERRORS)
        setattr(sys, name, _Guarded(stream))


def _replace(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(map(_ascii, error.object[error.start : error.end]))
    return text, error.end


def _ascii(character: str) -> str:
    if character in _ASCII:
        return _ASCII[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or character.encode("ascii", "backslashreplace").decode()


class _Guarded:
    """A text stream whose reader may go away."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As `TextIO.write`."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """As `TextIO.flush`."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """Let everything that is written go nowhere, and ask the loops to stop."""
        from jvdm.core import preemption

        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        preemption.request("a closed pipe")
