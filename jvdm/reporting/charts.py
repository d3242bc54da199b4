"""Curves as parts of a page: lines in inline SVG that fills its box, and labels in HTML around it.

The drawing is stretched to whatever room there is and the labels are placed in percent, so text has one size
on every screen. Colours come from the page's style, by class. The numbers of a line lie beside it for the
page's script, which shows those under the pointer.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jvdm.reporting import plots
from jvdm.reporting.markup import Html, element

MAX_POINTS = 400
FEW_POINTS = 40  # are drawn each, without a running mean
_HUGE = 1e100  # no float32 is as large
_SIZE = 1000.0  # of the drawing, in its own units
TOTALS = ("bpd", "nats")
_LOGARITHMIC = ("grad_norm",)
_TITLES = {
    "bpd": "bits per dimension",
    "nats": "negative log-likelihood",
    "grad_norm": "gradient norm",
    "gamma_0": "γ(0), little noise",
    "gamma_1": "γ(1), much noise",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One series.

    Attributes:
        label: in the legend.
        class_: of its colour.
        steps, values: [M], finite, M at least 1, in the order of steps.
        num_lost: values that were not finite.
    """

    label: str
    class_: str
    steps: np.ndarray
    values: np.ndarray
    num_lost: int = 0


def lines(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Line]]:
    """Every scalar of a run, by name ("bpd", "diffusion"), the total first, and by split, train first."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in metrics:
        for name, value in record.items():
            if name not in ("step", "time"):
                points.setdefault(name, []).append((record["step"], value))
    found: dict[str, dict[str, Line]] = {}
    order = (*TOTALS, *plots.TERMS)
    for name in sorted(points, key=lambda name: (name.partition("/")[0] != "train", name)):
        split, _, term = name.rpartition("/")
        array = np.array(sorted(points[name], key=lambda point: point[0]), np.float64)
        finite = array[np.abs(array[:, 1]) < _HUGE]  # neither nan nor inf
        found.setdefault(term, {})[split or "train"] = Line(
            label=split or "train",
            class_={"train": "train", "test": "test"}.get(split or "train", "other"),
            steps=finite[:, 0],
            values=finite[:, 1],
            num_lost=len(array) - len(finite),
        )
    known = {name: i for i, name in enumerate(order)}
    return dict(sorted(found.items(), key=lambda item: (known.get(item[0], len(order)), item[0])))


def of_run(line: Line, name: str, colour: int, split: str) -> Line:
    """The line among those of other runs: a colour for each run, dashes for training."""
    class_ = f"run-{colour}" + " dashed" * (split == "train")
    return dataclasses.replace(line, label=f"{name}, {split}", class_=class_)


def title(term: str) -> str:
    """A term in words."""
    return _TITLES.get(term, term.replace("_", " "))


def units(term: str, terms: Iterable[str]) -> str:
    """Of a term of a run that has these terms; empty where it has none."""
    if term in ("grad_norm", "learning_rate", "gamma_0", "gamma_1"):
        return ""
    return "nats" if "nats" in terms and "bpd" not in terms else "bits/dim"


def chart(term: str, series: Sequence[Line], *, units: str, wide: bool = False) -> Html:
    """One quantity against the training step.

    The vertical axis is that of the last nine tenths of the run, because the first steps lie far above.

    Args:
        term: the quantity's name.
        series: at least one line.
        units: of the vertical axis; may be empty.
        wide: over the whole page.
    """
    lost = sum(line.num_lost for line in series)
    series = [line for line in series if len(line.steps)]
    note = f"{lost} value{'s' * (lost > 1)} not finite, left out" if lost else None
    heading = element("figcaption", element("h3", title(term)), element("span", units, class_="units"))
    footer = element("p", note, class_="lost") if note else None
    if not series:
        return element(
            "figure", heading, element("p", "nothing to draw", class_="empty"), footer, class_="chart"
        )
    first, last = min(line.steps[0] for line in series), max(line.steps[-1] for line in series)
    x = _Axis(first - 0.015 * (last - first), last + 0.015 * (last - first))
    y = _value_axis(series, term)
    ticks = y.ticks(7 if wide else 5)
    grid = [f"M0 {_SIZE - y.place(at):.1f}h1000" for at in ticks]
    drawn = [element("path", d="".join(grid), class_="grid")]
    for line in series:
        drawn += _draw(line, x, y)
    svg = element(
        "svg", *drawn, viewBox="0 0 1000 1000", preserveAspectRatio="none", role="img",
        aria_label=f"{title(term)} against the training step: " + "; ".join(map(_describe, series)),
    )  # fmt: skip
    labels = [_label("y", f"top:{100 - y.place(at) / 10:.2f}%", y.label(at, ticks)) for at in ticks]
    labels += [_label("x", f"left:{x.place(at) / 10:.2f}%", plots.step_label(at)) for at in x.ticks(4)]
    bounds = {"data_x": f"{x.low:g} {x.high:g}", "data_y": f"{y.low:.6g} {y.high:.6g}"}
    plot = element("div", svg, *labels, class_="plot", data_log=y.logarithmic, **bounds)
    return element("figure", heading, plot, footer, class_="chart wide" if wide else "chart")


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """(class, label) of every colour."""
    items = [
        element("li", element("span", class_=f"key {name}", aria_hidden="true"), label)
        for name, label in entries
    ]
    return element("ul", *items, class_="legend")


def _describe(line: Line) -> str:
    first, last = (f"{line.values[i]:.4g} at step {line.steps[i]:,.0f}" for i in (0, -1))
    return f"{line.label} {last}" if len(line.steps) == 1 else f"{line.label} from {first} to {last}"


def _label(axis: str, place: str, what: str) -> Html:
    return element("span", what, class_=f"tick {axis}", style=place, aria_hidden="true")


def _draw(line: Line, x: "_Axis", y: "_Axis") -> list[Html]:
    """Every point where there are few; where there are many, their range lightly and their running mean."""
    if len(line.steps) <= FEW_POINTS:
        steps, values, drawn = line.steps, line.values, []
        dots = "".join(f"{point}h0" for point in _path(steps, values, x, y, every="M"))
        extra = [element("path", d=dots, class_=f"dots {line.class_}")]
    else:
        noisy = _path(*_outline(line.steps, line.values), x, y)
        drawn = [element("path", d="".join(noisy), class_=f"noise {line.class_}")]
        steps, values = plots.thin(
            line.steps, plots.running_mean(line.values, len(line.values) // 40), MAX_POINTS
        )
        extra = []
    numbers = ",".join(f"{step:.0f} {value:.5g}" for step, value in zip(steps, values, strict=True))
    main = element(
        "path", d="".join(_path(steps, values, x, y)), class_=f"line {line.class_}",
        data_label=line.label, data_points=numbers,
    )  # fmt: skip
    return [*drawn, main, *extra]


def _outline(steps: np.ndarray, values: np.ndarray) -> plots.Series:
    """The lowest and the highest point of every stretch, so that no spike is lost."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MAX_POINTS // 2)
    kept = np.concatenate([sorted({p[np.argmin(values[p])], p[np.argmax(values[p])]}) for p in parts])
    return steps[kept], values[kept]


def _path(steps: np.ndarray, values: np.ndarray, x: "_Axis", y: "_Axis", *, every: str = "L") -> list[str]:
    far = 20 * _SIZE  # outside, where only directions matter
    places = [
        (x.place(s), float(np.clip(_SIZE - y.place(v), -far, far)))
        for s, v in zip(steps, values, strict=True)
    ]
    return [f"{every if i else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(places)]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """From a number to its place."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """0 to 1000, or beyond."""
        low, high = self._scale(self.low), self._scale(self.high)
        if high == low:
            return _SIZE / 2
        return _SIZE * (self._scale(value) - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        """Round numbers, about `count` of them."""
        if self.high == self.low:
            return [self.low]
        if self.logarithmic:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ratio = self.high / self.low
            digits = (1, 2, 5) if ratio < 30 else (1, 3) if ratio < 300 else (1,)
            values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            inside = [value for value in values if self.low <= value <= self.high]
            return inside[:: math.ceil(len(inside) / 6)] or [self.low]
        span = self.high - self.low
        unit = 10.0 ** math.floor(math.log10(span / count))
        step = next(unit * m for m in (1, 2, 2.5, 5, 10, 20) if span / (unit * m) <= count)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def label(self, value: float, ticks: Sequence[float]) -> str:
        """As many decimals as tell ticks apart."""
        if self.logarithmic or len(ticks) < 2:
            return f"{value:g}"
        step = ticks[1] - ticks[0]
        if step < 0.99e-4 or step >= 1e6:
            return plots.power_label(value)
        # 2.5 and 0.25 have a digit more than their power of ten.
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return f"{value:,.{decimals + (abs(round(step, decimals) - step) > 1e-9 * step)}f}"

    def _scale(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.logarithmic else value


def _value_axis(series: Sequence[Line], term: str) -> _Axis:
    if term == "learning_rate":  # set rather than measured: from zero
        return _Axis(0.0, 1.06 * max(float(line.values.max()) for line in series) or 1.0)
    settled = []
    for line in series:
        late = line.steps >= line.steps[0] + 0.1 * (line.steps[-1] - line.steps[0])
        settled.append(line.values[late] if len(line.values) >= 20 else line.values)
    most = max(settled, key=len)
    low = min(float(part.min()) for part in settled)
    high = max(float(part.max()) if part is not most else float(np.quantile(part, 0.995)) for part in settled)
    if term in _LOGARITHMIC and low > 0 and high / low > 3:
        return _Axis(low / 1.2, high * 1.2, logarithmic=True)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return _Axis(low - margin, high + margin)
