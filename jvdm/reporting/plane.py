"""Plots of data in the plane: points, densities and the paths of samplers."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jvdm.reporting.plots import COLORS, DPI, INK, figure_of, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def points(xy: np.ndarray) -> np.ndarray:
    """Draw points [n, 2] as a scatter plot, uint8 [height, width, 3]."""
    figure = figure_of(5.0, 5.0)
    axes = figure.add_subplot()
    axes.scatter(*np.asarray(xy).reshape(-1, 2).T, s=4, color=COLORS["train"], alpha=0.6, lw=0)
    _plane(axes, "samples")
    return _pixels(figure)


def densities(log_density: Mapping[str, np.ndarray], extent: float, path: str | os.PathLike[str]) -> None:
    """Draw densities side by side, on one colour scale.

    Args:
        log_density: [m, m] natural logarithms by title, rows from the lowest y to the highest.
        extent: both axes run from -extent to extent.
        path: the PNG.

    Raises:
        UserError: the file cannot be written.
    """
    figure = figure_of(4.4 * len(log_density), 4.2)
    highest = max(float(np.exp(a).max()) for a in log_density.values())
    panels = np.ravel(figure.subplots(1, len(log_density)))
    for axes, (title, a) in zip(panels, log_density.items(), strict=True):
        axes.imshow(
            np.exp(a), origin="lower", extent=(-extent, extent) * 2, cmap="viridis", vmin=0.0, vmax=highest
        )
        _plane(axes, title)
    figure.colorbar(panels[0].images[0], ax=figure.axes, shrink=0.8, label="density")
    save(figure, path)


def trajectories(paths: Mapping[str, np.ndarray], path: str | os.PathLike[str], *, shown: int = 12) -> None:
    """Draw how samples form: each coordinate against time, and the final points.

    Args:
        paths: [steps + 1, n, 2] by title, from time 1, the noise, to time 0, the data.
        path: the PNG.
        shown: how many of the n paths are drawn; all n final points are.

    Raises:
        UserError: the file cannot be written.
    """
    figure = figure_of(10.0, 3.1 * len(paths))
    for row, (title, z) in zip(np.atleast_2d(figure.subplots(len(paths), 3)), paths.items(), strict=True):
        times = np.linspace(1.0, 0.0, len(z))
        for d, axes in enumerate(row[:2]):
            axes.plot(times, z[:, :shown, d], lw=0.8, alpha=0.9)
            axes.set_xlim(1.0, 0.0)
            axes.set_title(f"{title}: coordinate {d + 1}", loc="left", fontsize=10, color=INK)
            axes.set_xlabel("time (1 is noise, 0 is data)", fontsize=9, color=INK)
        row[2].scatter(*z[-1].T, s=3, color=COLORS["train"], alpha=0.5, lw=0)
        for i in range(min(shown, z.shape[1])):
            row[2].plot(*z[:, i].T, lw=0.5, alpha=0.5, color=COLORS["test"])
        _plane(row[2], "in the plane")
    save(figure, path)


def _plane(axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=8, colors=INK)


def _pixels(figure: "Figure") -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
