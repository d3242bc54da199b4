"""How a script says that it was used wrongly: in one line, with status 2, as `jvdm` does."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jvdm.core.errors import UserError, unknown


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s, and which takes no abbreviation."""

    def __init__(self, description: str | None):
        super().__init__(description=(description or "").partition("\n")[0], allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            UserError: in any case.
        """
        raise UserError(f"{message}; see --help")


def run(main: Callable[[], None]) -> None:
    """Run a script; a `UserError` ends it with one line and status 2."""
    try:
        main()
    except UserError as error:
        print(f"{pathlib.Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr)
        sys.exit(2)


def whole(text: str) -> int:
    """A number from 1; for a parser's `type`.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def wholes(text: str) -> list[int]:
    """Numbers from 1 with commas between; for a parser's `type`."""
    return [whole(part) for part in text.split(",")]


def names(flag: str, text: str, choices: Sequence[str]) -> list[str]:
    """Names with commas between.

    Raises:
        UserError: one of them is not a choice.
    """
    for name in text.split(","):
        if name not in choices:
            raise unknown(flag, name, choices)
    return text.split(",")
