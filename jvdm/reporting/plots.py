"""Plots of a run as PNG.

Figures are made without pyplot, so no global state of matplotlib is read for their layout or changed, and
their bytes depend on the numbers alone. matplotlib takes a second to import and is imported on use.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jvdm.core.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
COLORS = {"train": "#2f6db3", "test": "#d9622b", "validation": "#4c9a52"}
_OTHER_COLORS = ("#7f5fa8", "#8a6d3b", "#3a9e9e")
INK, _GRID = "#333333", "#e3e3e3"
TERMS = (
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
_TITLES = {"bpd": ("bits per dimension", "bits/dim"), "nats": ("negative log-likelihood", "nats")}
_GRADIENT_NORM = ("grad_norm", "gradient_norm")
_LEARNING_RATE = ("learning_rate", "lr")

Series = tuple[np.ndarray, np.ndarray]  # steps [M], values [M]


def training_curves(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draws bits/dim, its terms, gradient norm and learning rate against the step.

    Series are found by name, "<split>/bpd" (or "<split>/nats" of continuous data), "<split>/diffusion" and so
    on with any split, and
    "<split>/grad_norm", "<split>/learning_rate"; panels without a series are left out. Dense series are
    drawn light with their running mean on top. The vertical axis of a loss is that of the last nine tenths
    of a run, because the first steps lie far above.

    Args:
      metrics: records from `read_metrics`; losses in bits/dim.
      path: the PNG.

    Raises:
      UserError: if the file cannot be written.
    """
    series = _series(metrics)
    name = next((name for name in _TITLES if _by_split(series, [name])), "bpd")
    title, units = _TITLES[name]
    panels = [(term, units, _by_split(series, [term]), _draw_noisy) for term in TERMS]
    panels.append(("gradient norm", "norm", _by_split(series, _GRADIENT_NORM), _draw_logarithmic))
    panels.append(("learning rate", "learning rate", _by_split(series, _LEARNING_RATE), _draw_exact))
    panels = [panel for panel in panels if panel[2]]

    rows = math.ceil(len(panels) / 3)
    figure = figure_of(9.0, 4.2 + 2.3 * rows)
    layout = figure.add_gridspec(1 + rows, 6, height_ratios=[4.2] + [2.3] * rows)
    total = _by_split(series, [name])
    axes = figure.add_subplot(layout[0, :])
    style(axes, "training step", units, title + _summary(total), num_ticks=9)
    if total:
        _draw_noisy(axes, total)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, labelcolor=INK)
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=INK)
    for i, (title, unit, splits, draw) in enumerate(panels):
        row, column = divmod(i, 3)
        width = 6 // min(3, len(panels) - 3 * row)
        axes = figure.add_subplot(layout[1 + row, column * width : (column + 1) * width])
        style(axes, "training step", unit, title)
        draw(axes, splits)
    for axes in figure.axes:
        axes.xaxis.set_major_formatter(step_label)
    save(figure, path)


def loss_against_gamma(
    gamma: np.ndarray,
    loss: np.ndarray,
    path: str | os.PathLike[str],
    *,
    total: float | None = None,
    units: str = "bits/dim",
) -> None:
    """Draws where on the schedule the diffusion loss arises.

    Args:
      gamma: [M], −log SNR at the time of each draw.
      loss: [M], diffusion loss of one image at that time, in `units`; its mean over draws is the
        diffusion term.
      path: the PNG.
      total: the model's whole loss, for the title.
      units: of all of them.

    Raises:
      UserError: if the file cannot be written.
    """
    gamma, loss = np.ravel(np.asarray(gamma, np.float64)), np.ravel(np.asarray(loss, np.float64))
    if gamma.shape != loss.shape:
        raise ValueError(f"gamma has {gamma.size} values, loss has {loss.size}")
    finite = np.isfinite(gamma) & np.isfinite(loss)
    gamma, loss = gamma[finite], loss[finite]
    title = "diffusion loss against γ"
    if total is not None:
        title += f"   (model: {total:.4f} {units})"
    figure = figure_of(9.0, 4.8)
    axes = figure.add_subplot()
    xlabel = "γ = −log SNR   (little noise ← → much noise)"
    style(axes, xlabel, f"diffusion loss per draw [{units}]", title, num_ticks=9)
    if gamma.size:
        shown = np.random.default_rng(0).permutation(gamma.size)[:5000]
        alpha = float(np.clip(800 / len(shown), 0.16, 0.6))
        color = COLORS["train"]
        label = "one image at one time"
        axes.scatter(gamma[shown], loss[shown], s=6, color=color, alpha=alpha, lw=0, label=label)
        center, mean, error = _binned(gamma, loss)
        axes.fill_between(center, mean - 2 * error, mean + 2 * error, color=COLORS["test"], alpha=0.3, lw=0)
        label = "mean ± 2 standard errors"
        axes.plot(center, mean, color=COLORS["test"], lw=1.8, marker="o", ms=3.5, label=label)
        low, high = min(0.0, float(loss.min())), float(np.quantile(loss, 0.995))
        high = max(high, float(np.max(mean + 2 * error)))
        if high > low:
            axes.set_ylim(low - 0.02 * (high - low), high + 0.06 * (high - low))
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, labelcolor=INK, markerscale=1.5
        )
    save(figure, path)


def schedule(
    t: np.ndarray, gamma: np.ndarray, path: str | os.PathLike[str], *, dgamma_dt: np.ndarray | None = None
) -> None:
    """Draws a scalar noise schedule and its derivative.

    Args:
      t: [M] times in [0, 1], increasing, M at least 2.
      gamma: [M], γ(t) = −log SNR.
      path: the PNG.
      dgamma_dt: [M], dγ/dt; by default from finite differences of `gamma`.

    Raises:
      UserError: if the file cannot be written.
    """
    t, gamma = np.asarray(t, np.float64), np.asarray(gamma, np.float64)
    if t.ndim != 1 or t.size < 2 or gamma.shape != t.shape:
        raise ValueError(f"expected t and gamma [M], got {list(t.shape)} and {list(gamma.shape)}")
    slope = np.gradient(gamma, t) if dgamma_dt is None else np.asarray(dgamma_dt, np.float64)
    if slope.shape != t.shape:
        raise ValueError(f"expected dgamma_dt {list(t.shape)}, got {list(slope.shape)}")
    figure = figure_of(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    style(left, "time t", "γ(t) = −log SNR", "noise schedule")
    style(right, "time t", "dγ/dt", "its derivative")
    left.plot(t, gamma, color=COLORS["train"], lw=1.8)
    right.plot(t, slope, color=COLORS["test"], lw=1.8)
    for axes in (left, right):
        axes.set_xlim(float(t[0]), float(t[-1]))
    # The rounding errors of a straight line must not fill the panel.
    low, high = float(slope.min()), float(slope.max())
    scale = max(abs(low), abs(high)) or 1.0
    if high - low < 0.01 * scale:
        right.set_ylim((low + high) / 2 - 0.05 * scale, (low + high) / 2 + 0.05 * scale)
    save(figure, path)


def _series(metrics: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Steps and values by name, finite values only."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in metrics:
        for name, value in record.items():
            numeric = isinstance(value, int | float) and math.isfinite(value)
            if name not in ("step", "time") and numeric:
                points.setdefault(name, []).append((record["step"], value))
    arrays = {name: np.array(sorted(pairs, key=lambda pair: pair[0])) for name, pairs in points.items()}
    return {name: (array[:, 0], array[:, 1]) for name, array in arrays.items()}


def _by_split(series: Mapping[str, Series], names: Sequence[str]) -> dict[str, Series]:
    """The series whose last component is one of `names`, by the component before it, train first."""
    found = {}
    for name, values in series.items():
        split, _, last = name.rpartition("/")
        if last in names:
            found.setdefault(split or "train", values)
    return dict(sorted(found.items(), key=lambda item: (item[0] != "train", item[0])))


def _summary(splits: Mapping[str, Series]) -> str:
    """The numbers one would read off the curve of the evaluations."""
    for split in ("test", "validation"):
        if split in splits:
            steps, values = splits[split]
            best = int(np.argmin(values))
            return f"   ({split}: best {values[best]:.4f} at step {steps[best]:,.0f}, last {values[-1]:.4f})"
    return ""


def _draw_noisy(axes: "Axes", splits: Mapping[str, Series]) -> None:
    """Every point where there are few, the running mean where there are many."""
    others = iter(_OTHER_COLORS * len(splits))
    settled = []  # what the vertical axis must show
    for split, (steps, values) in splits.items():
        color = COLORS.get(split) or next(others)
        if len(steps) <= 40:
            axes.plot(steps, values, color=color, lw=1.5, marker="o", ms=3.5, zorder=3, label=split)
        else:
            axes.plot(*thin(steps, values), color=color, lw=0.6, alpha=0.35)
            mean = running_mean(values, len(values) // 40)
            axes.plot(*thin(steps, mean), color=color, lw=1.6, label=split)
        late = steps >= steps[0] + 0.1 * (steps[-1] - steps[0])
        settled.append(values[late] if len(values) >= 20 else values)
    most = max(settled, key=len)
    low = min(float(part.min()) for part in settled)
    high = max(float(part.max()) if part is not most else float(np.quantile(part, 0.995)) for part in settled)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _draw_logarithmic(axes: "Axes", splits: Mapping[str, Series]) -> None:
    """As `_draw_noisy`, on a logarithmic axis where the values span enough for one."""
    from matplotlib.ticker import LogLocator, NullLocator

    _draw_noisy(axes, splits)
    values = np.concatenate([values for _, values in splits.values()])
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > 3:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if high / low < 300 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")


def _draw_exact(axes: "Axes", splits: Mapping[str, Series]) -> None:
    """What is set rather than measured: drawn as it is, from zero."""
    for split, (steps, values) in splits.items():
        marker = "o" if len(steps) == 1 else None
        axes.plot(*thin(steps, values), color=COLORS.get(split, INK), lw=1.6, marker=marker, ms=3.5)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(power_label)


def step_label(step: float, _: object = None) -> str:
    """2500 as it is, 20000 as "20k", 1500000 as "1.5M"."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(step) >= 10 * unit or (abs(step) >= unit and unit == 1e6):
            return f"{step / unit:g}{name}"
    return f"{step:g}"


def power_label(value: float, _: object = None) -> str:
    """0.0002 as "2e-4", so that the ticks of one axis look alike."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def running_mean(values: np.ndarray, half_width: int) -> np.ndarray:
    """Mean over a window that narrows towards the start, where the loss falls steeply."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first = np.maximum(index - half_width, 0)
    last = np.minimum(np.minimum(index + half_width, 2 * index + 5), len(values) - 1)
    return (total[last + 1] - total[first]) / (last + 1 - first)


def thin(steps: np.ndarray, values: np.ndarray, limit: int = 4000) -> Series:
    """Every n-th point: more than the picture has columns cannot be seen."""
    stride = math.ceil(len(steps) / limit)
    return steps[::stride], values[::stride]


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of x, mean of y and its standard error in bins of equal counts."""
    order = np.argsort(x, kind="stable")
    parts = np.array_split(order, int(np.clip(len(x) // 20, 1, 40)))
    center = np.array([x[part].mean() for part in parts])
    mean = np.array([y[part].mean() for part in parts])
    error = np.array([y[part].std(ddof=1) / math.sqrt(len(part)) if len(part) > 1 else 0.0 for part in parts])
    return center, mean, error


def figure_of(width: float, height: float) -> "Figure":
    """An empty figure of that many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def style(axes: "Axes", xlabel: str, ylabel: str, title: str, *, num_ticks: int = 5) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.grid(color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=num_ticks)
    axes.locator_params(axis="y", nbins=max(5, num_ticks - 3))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, whole or not at all.

    Raises:
      UserError: if the file cannot be written.
    """
    # Without a canvas of its own a Figure draws PNG with Agg; the default metadata names a version.
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    )
