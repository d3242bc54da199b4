"""Plots of a run as PNG.

Figures are made without pyplot, so no global state of matplotlib is read for their layout or changed, and
their bytes depend on the numbers alone. matplotlib takes a second to import and is imported on use.
"""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jvdm.core.files import write_atomically
from jvdm.reporting import curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
COLORS = {"train": "#2f6db3", "test": "#d9622b"}
_OTHER_COLORS = ("#7f5fa8", "#3c8c43", "#8a6d3b", "#3a9e9e")
INK, _GRID = "#333333", "#e3e3e3"


def training_curves(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw bits/dim (nats for continuous data) and every other quantity against the training step.

    A panel for each term that `metrics` holds; its axis and its points are those of `curves`.

    Args:
        metrics: records from `read_metrics`.
        path: the PNG.

    Raises:
        UserError: the file cannot be written.
    """
    found = {}
    for term, splits in curves.read(metrics).items():
        if splits := {split: series for split, series in splits.items() if len(series.steps)}:
            found[term] = splits
    total = next((term for term in curves.TOTALS if term in found), None)
    panels = [term for term in found if term != total]
    rows = math.ceil(len(panels) / 3)
    figure = figure_of(9.0, 4.2 + 2.3 * rows)
    layout = figure.add_gridspec(1 + rows, 6, height_ratios=[4.2] + [2.3] * rows)
    axes = figure.add_subplot(layout[0, :])
    if total is not None:
        heading = curves.title(total) + _best(found[total])
        style(axes, "training step", curves.units(total, found), heading)
        _draw(axes, found[total], total, num_ticks=8)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, labelcolor=INK)
    else:
        style(axes, "training step", "", "loss")
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=INK)
    for i, term in enumerate(panels):
        row, column = divmod(i, 3)
        width = 6 // min(3, len(panels) - 3 * row)
        axes = figure.add_subplot(layout[1 + row, column * width : (column + 1) * width])
        style(axes, "training step", curves.units(term, found), curves.title(term))
        _draw(axes, found[term], term)
    save(figure, path)


def loss_against_gamma(
    gamma: np.ndarray,
    loss: np.ndarray,
    path: str | os.PathLike[str],
    *,
    total: float | None = None,
    units: str = "bits/dim",
) -> None:
    """Draw the diffusion loss against γ, to show where on the schedule it arises.

    Args:
        gamma: [M], −log SNR at the time of each draw.
        loss: [M], diffusion loss of one image at that time, in `units`; its mean over draws is the
            diffusion term.
        path: the PNG.
        total: the model's whole loss, for the title.
        units: of the losses.

    Raises:
        UserError: the file cannot be written.
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
    """Draw a scalar noise schedule and its derivative.

    Args:
        t: [M] times in [0, 1], increasing, M at least 2.
        gamma: [M], γ(t) = −log SNR.
        path: the PNG.
        dgamma_dt: [M], dγ/dt; by default from finite differences of `gamma`.

    Raises:
        UserError: the file cannot be written.
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


def _best(splits: Mapping[str, curves.Series]) -> str:
    """The best and the last evaluation, for a title."""
    if "test" not in splits:
        return ""
    steps, values = splits["test"].steps, splits["test"].values
    best = int(np.argmin(values))
    return f"   (test: best {values[best]:.4f} at step {steps[best]:,.0f}, last {values[-1]:.4f})"


def _draw(axes: "Axes", splits: Mapping[str, curves.Series], term: str, *, num_ticks: int = 5) -> None:
    """Draw the series of one term and sets both axes."""
    others = itertools.cycle(_OTHER_COLORS)
    for split, series in splits.items():
        color = COLORS.get(split) or next(others)
        drawing = curves.drawing(series, term, max_points=2000)
        if drawing.noise is not None:
            axes.plot(*drawing.noise, color=color, lw=0.6, alpha=0.35)
        marker = {"marker": "o", "ms": 3.5} if drawing.has_dots else {}
        axes.plot(*drawing.line, color=color, lw=1.6, label=split, zorder=3, **marker)
    shown = list(splits.values())
    x, y = curves.step_axis(shown), curves.value_axis(shown, term)
    if y.logarithmic:
        axes.set_yscale("log")
        axes.minorticks_off()
    steps, values = x.ticks(num_ticks), y.ticks(num_ticks)
    axes.set_xticks(steps, [curves.step_label(step) for step in steps])
    axes.set_yticks(values, y.labels(values))
    axes.set_ylim(y.low, y.high)
    if x.high > x.low:  # a single step has no range
        axes.set_xlim(x.low, x.high)


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The means of x and y and the standard error of the latter, in bins of equal counts."""
    order = np.argsort(x, kind="stable")
    parts = np.array_split(order, int(np.clip(len(x) // 20, 1, 40)))
    center = np.array([x[part].mean() for part in parts])
    mean = np.array([y[part].mean() for part in parts])
    error = np.array([y[part].std(ddof=1) / math.sqrt(len(part)) if len(part) > 1 else 0.0 for part in parts])
    return center, mean, error


def figure_of(width: float, height: float) -> "Figure":
    """Make an empty figure, its size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def style(axes: "Axes", xlabel: str, ylabel: str, title: str, *, num_ticks: int = 5) -> None:
    """Set the labels, colours and grid that all plots share."""
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
    """Write a figure as PNG, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    # A Figure without a canvas draws PNG with Agg; the default metadata would name a version.
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    )
