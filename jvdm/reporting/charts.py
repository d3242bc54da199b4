"""Charts of the report: curves as paths of an inline SVG that fills its box, with labels in HTML around it.

The drawing is stretched to whatever room there is and the labels are placed in percent, so that text has one
size on every screen. Colours are classes of the page's style. The numbers of a line are kept beside it for
the page's script, which shows those under the pointer.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jvdm.reporting import curves
from jvdm.reporting.curves import Axis, Points, Series

MAX_POINTS = 400
_SIZE = 1000.0  # of the drawing, in its own units


class Line(NamedTuple):
    """One series of a chart: its label in the legend, and the class of its colour."""

    label: str
    class_: str
    series: Series


class Path(NamedTuple):
    """One path of a drawing.

    Attributes:
        class_: how it is drawn.
        d: the path.
        label, points: of a line, what the pointer shows: "step value,step value,…".
    """

    class_: str
    d: str
    label: str = ""
    points: str = ""


class Tick(NamedTuple):
    """A label of an axis, and where it is: percent from the left or the top."""

    percent: str
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """One quantity against the training step.

    Attributes:
        title, units: of the quantity; units may be empty.
        wide: over the whole page.
        num_dropped: values that were not finite.
        description: what is drawn, in words.
        steps: the ends of the horizontal axis, "low high".
        paths: none where there is nothing to draw.
        ticks_x, ticks_y: labels of the axes.
    """

    title: str
    units: str
    wide: bool
    num_dropped: int
    description: str = ""
    steps: str = ""
    paths: Sequence[Path] = ()
    ticks_x: Sequence[Tick] = ()
    ticks_y: Sequence[Tick] = ()


def chart(term: str, lines: Sequence[Line], *, units: str, wide: bool = False) -> Chart:
    """The chart of one quantity.

    Args:
        term: the quantity's name.
        lines: at least one; empty ones are left out.
        units: of the vertical axis; may be empty.
        wide: over the whole page.
    """
    title = curves.title(term)
    num_dropped = sum(line.series.num_dropped for line in lines)
    lines = [line for line in lines if len(line.series.steps)]
    if not lines:
        return Chart(title=title, units=units, wide=False, num_dropped=num_dropped)
    series = [line.series for line in lines]
    x, y = curves.step_axis(series), curves.value_axis(series, term)
    steps, values = x.ticks(4), y.ticks(7 if wide else 5)
    grid = "".join(f"M0 {_SIZE - _SIZE * y.place(value):.1f}h1000" for value in values)
    return Chart(
        title=title,
        units=units,
        wide=wide,
        num_dropped=num_dropped,
        description=f"{title} against the training step: " + "; ".join(map(_describe, lines)),
        steps=f"{x.low:g} {x.high:g}",
        paths=[Path("grid", grid), *(path for line in lines for path in _paths(line, term, x, y))],
        ticks_x=[Tick(f"{100 * x.place(step):.2f}", curves.step_label(step)) for step in steps],
        ticks_y=[
            Tick(f"{100 - 100 * y.place(value):.2f}", label)
            for value, label in zip(values, y.labels(values), strict=True)
        ],
    )


def _describe(line: Line) -> str:
    steps, values = line.series.steps, line.series.values
    first, last = (f"{values[i]:.4g} at step {steps[i]:,.0f}" for i in (0, -1))
    return f"{line.label} {last}" if len(steps) == 1 else f"{line.label} from {first} to {last}"


def _paths(line: Line, term: str, x: Axis, y: Axis) -> list[Path]:
    """The paths of one line."""
    drawing = curves.drawing(line.series, term, max_points=MAX_POINTS)
    numbers = ",".join(f"{step:.0f} {value:.5g}" for step, value in zip(*drawing.line, strict=True))
    places = _places(drawing.line, x, y)
    paths = [Path(f"line {line.class_}", "M" + "L".join(places), line.label, numbers)]
    if drawing.noise is not None:
        paths.insert(0, Path(f"noise {line.class_}", "M" + "L".join(_places(drawing.noise, x, y))))
    if drawing.has_dots:
        paths.append(Path(f"dots {line.class_}", "".join(f"M{place}h0" for place in places)))
    return paths


def _places(points: Points, x: Axis, y: Axis) -> list[str]:
    far = 20 * _SIZE  # outside, where only directions matter
    return [
        f"{_SIZE * x.place(step):.1f} {np.clip(_SIZE - _SIZE * y.place(value), -far, far):.1f}"
        for step, value in zip(*points, strict=True)
    ]
