"""The tables and pictures that the template draws. Their text is not escaped yet."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from jvdm.core import tables


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and how its cells are set."""

    title: str
    kind: Literal["text", "number", "code", "changed"] = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows.
        columns: the first one names the rows.
        groups: rows by the heading above them, "" for none. A row has a cell for each column; None is shown
            as a dash.
    """

    caption: str
    columns: Sequence[Column]
    groups: Mapping[str, Sequence[Sequence[str | None]]]

    def text(self) -> str:
        """The rows as a table for a terminal."""
        titles = [column.title for column in self.columns]
        rows = [row for rows in self.groups.values() for row in rows]
        cells = [["-" if cell is None else cell for cell in row] for row in rows]
        return tables.table([dict(zip(titles, row, strict=True)) for row in cells], columns=titles)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG that is known to decode.

    Attributes:
        name: its path in its workdir.
        data: the bytes of the file.
        width, height: in pixels.
    """

    name: str
    data: bytes
    width: int
    height: int

    @property
    def source(self) -> str:
        """The picture as a URL that holds all of it."""
        return "data:image/png;base64," + base64.b64encode(self.data).decode()


class Figure(NamedTuple):
    """A picture with its caption, and what it shows for those who cannot see it."""

    picture: Picture
    caption: str
    alt: str
