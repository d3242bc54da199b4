"""HTML whose text is always escaped: what is not `Html` already becomes text."""

import base64
import dataclasses
import html
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = {"img", "input", "link", "meta"}
_MISSING = "–"


class Html(str):
    """Markup, as `element` makes it; any other string is text."""

    __slots__ = ()


def text(value: object) -> Html:
    """Text that shows as it is, with a replacement character for whatever has no glyph.

    Control characters are no HTML, lone surrogates no UTF-8, and marks of direction would let a name show
    as another.
    """
    if isinstance(value, Html):
        return value
    printable = (c if c.isprintable() or c in "\n\t\xa0" else "\ufffd" for c in str(value))
    return Html(html.escape("".join(printable)))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Parts of a page, one after another."""
    return Html(separator.join(text(part) for part in parts))


def element(name: str, *content: object, **attributes: object) -> Html:
    """One element.

    Args:
        name: its tag.
        *content: `Html`, or text; None is left out.
        **attributes: a name's final underscore is dropped and others are hyphens (`class_`, `aria_label`);
            True is an attribute without a value, and None or False none at all.
    """
    given = ((key.rstrip("_").replace("_", "-"), v) for key, v in attributes.items())
    inside = "".join(
        f" {key}" if v is True else f' {key}="{text(v)}"'
        for key, v in given
        if v is not None and v is not False
    )
    start = f"<{name}{inside}>"
    if name in _VOID:
        return Html(start)
    return Html(f"{start}{join(c for c in content if c is not None)}</{name}>")


def raw(name: str, content: str, **attributes: object) -> Html:
    """A `style` or `script` of the package's own, which HTML takes literally.

    Raises:
        ValueError: the content would end it.
    """
    if "</" in content:
        raise ValueError(f"a {name} cannot hold '</'")
    return element(name, Html(content), **attributes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG that is known to decode.

    Attributes:
        name: its path inside its workdir.
        data: the file.
        width, height: pixels.
    """

    name: str
    data: bytes
    width: int
    height: int


def figure(picture: Picture, caption: object, *, alt: str) -> Html:
    """A picture in the page itself.

    Args:
        picture: what is shown.
        caption: below it.
        alt: what it shows, in words.
    """
    source = "data:image/png;base64," + base64.b64encode(picture.data).decode()
    size = {"width": picture.width, "height": picture.height}
    image = element("img", src=source, alt=alt, **size)
    return element("figure", image, element("figcaption", caption), class_="picture")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A table's column: its heading, and whether it holds numbers."""

    title: str
    number: bool = False


def table(
    caption: str, columns: Sequence[Column], rows: Iterable[Sequence[object]], **attributes: Any
) -> Html:
    """A table that scrolls by itself where the page is too narrow.

    Args:
        caption: what it shows.
        columns: the first one names its rows.
        rows: a cell for each column; None is shown as a dash. A row of one cell heads those below.
        **attributes: of the rows' element.
    """
    head = [
        element("th", column.title, scope="col", class_="number" if column.number else None)
        for column in columns
    ]
    groups: list[list[Html]] = [[]]
    for row in rows:
        if len(row) == 1:
            heading = element("th", row[0], scope="rowgroup", colspan=len(columns))
            groups.append([element("tr", heading, class_="group")])
            continue
        cells = [
            element("td", _MISSING if cell is None else cell, class_="number" if column.number else None)
            for cell, column in zip(row[1:], columns[1:], strict=True)
        ]
        groups[-1].append(element("tr", element("th", row[0], scope="row"), *cells))
    bodies = [element("tbody", *lines, **attributes) for lines in groups if lines]
    whole = element("table", element("caption", caption), element("thead", element("tr", *head)), *bodies)
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)
