"""Results as text: tables, and numbers with errors."""

import math
import re
from collections.abc import Mapping, Sequence

_NUMBER = re.compile(r"[≤≥<>≈~]?\s*[+−-]?\d[\d.,_]*(e[+-]?\d+)?(\s*±\s*(<?\s*[\d.e+-]+|nan|inf))?\s*%?")


def table(rows: Sequence[Mapping[str, str]], *, columns: Sequence[str] | None = None) -> str:
    """Format rows as a Markdown table that is aligned, so that it reads well on a terminal.

    Args:
        rows: cells by column. Missing cells are empty.
        columns: which columns, in which order; by default all, in order of first appearance.

    Returns:
        Lines without a final newline: a header, a rule and one line per row. Columns of numbers, such as
        "2.0134 ± 0.0021" or "≤ 2.65", are aligned right; "-" is none.
    """
    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return ""
    header = [_cell(name) for name in columns]
    body = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(3, *(len(line[i]) for line in [header, *body])) for i in range(len(columns))]
    right = []
    for i in range(len(columns)):
        filled = [line[i] for line in body if line[i]]
        numbers = [cell for cell in filled if cell != "-"]
        right.append(bool(numbers) and all(_NUMBER.fullmatch(cell) for cell in numbers))
    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if r else cell.ljust(width)
            for cell, width, r in zip(cells, widths, right, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(header), line(rule), *map(line, body)])


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def with_error(value: float, error: float, digits: int = 4) -> str:
    """Format a number with its error, such as "2.0134 ± 0.0021".

    Args:
        value: the estimate.
        error: its standard error, in the unit of `value`.
        digits: decimals of both.

    Returns:
        The text. An error that would round to zero without being zero is given as a limit: "± <0.0001".
    """
    shown = f"{error:.{digits}f}"
    if math.isfinite(error) and error > 0 and float(shown) == 0:
        shown = f"<{10.0**-digits:.{digits}f}"
    return f"{value:.{digits}f} ± {shown}"


def difference_text(value: float, error: float | None) -> str:
    """Format a difference with its sign and, if known, its error, such as "+0.0011 ± 0.0004"."""
    sign = "+" if value >= 0 else ""
    return f"{sign}{value:.4f}" if error is None else sign + with_error(value, error)
