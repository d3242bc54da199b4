"""Training curves as numbers: the series of a run, the axis that shows them, and the points that are drawn.

The PNG of a training run (`plots`) and the report (`charts`) draw what this module returns.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FEW_POINTS = 40  # up to here every point is marked and there is no running mean
TOTALS = ("bpd", "nats")
_ORDER = (
    *TOTALS,
    "score_matching",
    "reconstruction",
    "prior",
    "diffusion",
    "latent",
    "second_order",
    "score",
    "divergence",
    "dequantization",
)
_TITLES = {
    "bpd": "bits per dimension",
    "nats": "negative log-likelihood",
    "grad_norm": "gradient norm",
    "gamma_0": "γ(0), least noise",
    "gamma_1": "γ(1), most noise",
}
_WITHOUT_UNITS = ("grad_norm", "learning_rate", "gamma_0", "gamma_1")
_LOGARITHMIC = ("grad_norm",)
_EXACT = ("learning_rate",)  # set rather than measured: no running mean, and an axis from zero
_HUGE = 1e100  # beyond every float32

Points = tuple[np.ndarray, np.ndarray]  # steps [M], values [M]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One quantity on one split.

    Attributes:
        steps, values: [M], finite, M at least 0, in the order of steps.
        num_dropped: how many values were not finite.
    """

    steps: np.ndarray
    values: np.ndarray
    num_dropped: int = 0


class Drawing(NamedTuple):
    """What is drawn of a series.

    Attributes:
        line: its points, or their running mean where there are many.
        noise: the extremes around a running mean, drawn lightly; None where `line` is the points themselves.
        has_dots: every point is marked.
    """

    line: Points
    noise: Points | None
    has_dots: bool


def read(metrics: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    """Sorts the lines of `metrics.jsonl` into series.

    Args:
        metrics: records with "step", and floats named "<split>/<term>".

    Returns:
        Series by term ("bpd", "diffusion"), the total first, and by split, "train" first.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for record in metrics:
        for name, value in record.items():
            if name not in ("step", "time"):
                points.setdefault(name, []).append((record["step"], value))
    found: dict[str, dict[str, Series]] = {}
    for name in sorted(points, key=lambda name: (name.partition("/")[0] != "train", name)):
        split, _, term = name.rpartition("/")
        array = np.array(sorted(points[name], key=lambda point: point[0]), np.float64)
        finite = array[np.abs(array[:, 1]) < _HUGE]  # also drops nan and inf
        found.setdefault(term, {})[split or "train"] = Series(
            steps=finite[:, 0], values=finite[:, 1], num_dropped=len(array) - len(finite)
        )
    rank = {term: i for i, term in enumerate(_ORDER)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def title(term: str) -> str:
    """The term in words."""
    return _TITLES.get(term, term.replace("_", " "))


def units(term: str, terms: Iterable[str]) -> str:
    """The units of a term of a run that records `terms`; empty for a plain number."""
    if term in _WITHOUT_UNITS:
        return ""
    return "nats" if "nats" in terms and "bpd" not in terms else "bits/dim"


@dataclasses.dataclass(frozen=True)
class Axis:
    """The range of an axis, linear or logarithmic."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value is on the axis: 0 at `low`, 1 at `high`, and beyond."""
        low, high = self._scale(self.low), self._scale(self.high)
        return 0.5 if high == low else (self._scale(value) - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        """Round numbers inside the range, about `count` of them."""
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

    def labels(self, ticks: Sequence[float]) -> list[str]:
        """The ticks as text, with as many decimals as tell them apart."""
        if self.logarithmic or len(ticks) < 2:
            return [f"{value:g}" for value in ticks]
        step = ticks[1] - ticks[0]
        if step < 0.99e-4 or step >= 1e6:
            return [power_label(value) for value in ticks]
        # 2.5 and 0.25 have a digit more than their power of ten.
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        decimals += abs(round(step, decimals) - step) > 1e-9 * step
        return [f"{value:,.{decimals}f}" for value in ticks]

    def _scale(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.logarithmic else value


def step_axis(series: Sequence[Series]) -> Axis:
    """The training steps of all series, none of which is empty."""
    first, last = min(each.steps[0] for each in series), max(each.steps[-1] for each in series)
    margin = 0.015 * (last - first)
    return Axis(float(first - margin), float(last + margin))


def value_axis(series: Sequence[Series], term: str) -> Axis:
    """The range of the last nine tenths of a run, because the first steps are far above the others.

    Args:
        series: of one quantity; none is empty.
        term: its name. A gradient norm gets a logarithmic axis, a learning rate one from zero.
    """
    if term in _EXACT:
        return Axis(0.0, 1.06 * max(float(each.values.max()) for each in series) or 1.0)
    settled = []
    for each in series:
        late = each.steps >= each.steps[0] + 0.1 * (each.steps[-1] - each.steps[0])
        settled.append(each.values[late] if len(each.values) >= 20 else each.values)
    longest = max(settled, key=len)
    low = min(float(part.min()) for part in settled)
    high = max(float(np.quantile(part, 0.995)) if part is longest else float(part.max()) for part in settled)
    if term in _LOGARITHMIC and low > 0 and high / low > 3:
        return Axis(low / 1.2, high * 1.2, logarithmic=True)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin)


def drawing(series: Series, term: str, *, max_points: int) -> Drawing:
    """The points that are drawn of a series that is not empty.

    Args:
        series: of any length.
        term: its name.
        max_points: the length of each line at most.
    """
    steps, values = series.steps, series.values
    if len(steps) <= FEW_POINTS or term in _EXACT:
        return Drawing(thin(steps, values, max_points), None, len(steps) <= FEW_POINTS)
    mean = running_mean(values, len(values) // 40)
    return Drawing(thin(steps, mean, max_points), outline(steps, values, max_points), False)


def running_mean(values: np.ndarray, half_width: int) -> np.ndarray:
    """Mean over a window that narrows towards the start, where the loss falls steeply."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first = np.maximum(index - half_width, 0)
    last = np.minimum(np.minimum(index + half_width, 2 * index + 5), len(values) - 1)
    return (total[last + 1] - total[first]) / (last + 1 - first)


def thin(steps: np.ndarray, values: np.ndarray, max_points: int) -> Points:
    """Every n-th point."""
    stride = math.ceil(len(steps) / max_points)
    return steps[::stride], values[::stride]


def outline(steps: np.ndarray, values: np.ndarray, max_points: int) -> Points:
    """The lowest and the highest point of every stretch, so that no spike is lost."""
    if len(steps) <= max_points:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), max_points // 2)
    kept = np.concatenate([sorted({p[np.argmin(values[p])], p[np.argmax(values[p])]}) for p in parts])
    return steps[kept], values[kept]


def step_label(step: float) -> str:
    """2500 as it is, 20000 as "20k", 1500000 as "1.5M"."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(step) >= 10 * unit or (abs(step) >= unit and unit == 1e6):
            return f"{step / unit:g}{name}"
    return f"{step:g}"


def power_label(value: float) -> str:
    """0.0002 as "2e-4", so that the ticks of one axis look alike."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"
