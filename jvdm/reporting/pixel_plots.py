"""Per-pixel noise schedules as PNG, as in the MuLAN paper (2312.13236, section 5.3)."""

import os
from collections.abc import Sequence

import numpy as np

from jvdm.reporting import plots

SHOWN_TIMES = (0.25, 0.5, 0.75)


def pixel_schedules(
    t: np.ndarray, gamma: np.ndarray, images: Sequence[np.ndarray], path: str | os.PathLike[str]
) -> None:
    """Draw a row for each latent: its image, gamma(t) of the pixels, and maps of gamma at three times.

    A map shows the mean over channels minus the mean over pixels: red pixels are noised earlier. All maps
    share one scale.

    Args:
        t: [T] times in [0, 1], increasing.
        gamma: [N, T, h, w, c], γ = −log SNR.
        images: N pictures, [height, width, 3] uint8.
        path: the PNG.

    Raises:
        UserError: the file cannot be written.
    """
    if gamma.ndim != 5 or gamma.shape[1] != len(t) or len(images) != len(gamma):
        raise ValueError(
            f"expected gamma [N, {len(t)}, h, w, c] of {len(images)} images, got {list(gamma.shape)}"
        )
    gamma = np.asarray(gamma, np.float64)
    at = [int(np.argmin(np.abs(t - time))) for time in SHOWN_TIMES]
    maps = gamma[:, at].mean(axis=-1)
    maps -= maps.mean(axis=(2, 3), keepdims=True)
    limit = float(np.abs(maps).max()) or 1.0
    figure = plots.figure_of(10.5, 0.5 + 2.1 * len(gamma))
    grid = figure.subplots(len(gamma), 2 + len(at), squeeze=False, width_ratios=[1.0, 1.9] + [1.1] * len(at))
    for row, (axes, image) in enumerate(zip(grid, images, strict=True)):
        axes[0].imshow(image, interpolation="nearest")
        _curves(axes[1], t, gamma[row].reshape(len(t), -1), title="γ(t) of every pixel" if row == 0 else "")
        for column, values in enumerate(maps[row]):
            axes[2 + column].imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            if row == 0:
                axes[2 + column].set_title(f"t = {t[at[column]]:.2f}", fontsize=10, color=plots.INK)
        for each in (axes[0], *axes[2:]):
            each.set(xticks=[], yticks=[])
    bar = figure.colorbar(grid[0, 2].images[0], ax=grid[:, 2:], shrink=0.7)
    bar.set_label("γ minus its mean over pixels", fontsize=9, color=plots.INK)
    plots.save(figure, path)


def _curves(axes, t: np.ndarray, gamma: np.ndarray, *, title: str) -> None:
    """Draw the range over pixels, its middle 80 %, and some of the pixels."""
    plots.style(axes, "time t", "", title)
    low, p10, middle, p90, high = np.quantile(gamma, [0.0, 0.1, 0.5, 0.9, 1.0], axis=1)
    color = plots.COLORS["train"]
    axes.fill_between(t, low, high, color=color, alpha=0.15, lw=0)
    axes.fill_between(t, p10, p90, color=color, alpha=0.3, lw=0)
    for i in np.linspace(0, gamma.shape[1] - 1, 12).astype(int):
        axes.plot(t, gamma[:, i], color=plots.INK, lw=0.4, alpha=0.6)
    axes.plot(t, middle, color=plots.COLORS["test"], lw=1.6)
