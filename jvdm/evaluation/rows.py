"""The rows that an estimator yields, and their errors.

Rows are arrays by name whose first axis is the images. Among them are the terms of the bound, [N, n] in the
model's units for n draws per image, which sum to the bound of each draw.
"""

import math
from typing import Any

import numpy as np

Rows = dict[str, np.ndarray]


def bits_per_dim(rows: Rows, terms: tuple[str, ...]) -> np.ndarray:
    """[N, n] the bound of every draw."""
    return np.sum([np.asarray(rows[name], np.float64) for name in terms], axis=0)


def standard_error(values: np.ndarray) -> float | None:
    """sd / sqrt(N) of [N] values; None for one."""
    n = len(values)
    return float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None


def independent_errors(values: np.ndarray) -> np.ndarray | None:
    """[N] the error of each image's mean of [N, n] values drawn independently; None for one draw."""
    num_draws = values.shape[1]
    return values.std(axis=1, ddof=1) / math.sqrt(num_draws) if num_draws > 1 else None


def stratified_errors(values: np.ndarray, gamma: np.ndarray) -> np.ndarray | None:
    """[N] the error of each image's mean of [N, n] values that comes from the n draws; None for one draw.

    An image's n times are drawn one in each of n equal intervals, so the variance of its mean is that
    within intervals: of the noise, and of the curve of the loss inside one of them. It is estimated from
    neighbours, sum_j (l_(j+1) - l_j)^2 / (2 (n - 1)) (von Neumann's estimator), which adds half the
    squared rise from one interval to the next and so overstates it a little.
    """
    num_draws = values.shape[1]
    if num_draws < 2:
        return None
    in_time = np.take_along_axis(values, np.argsort(gamma, axis=1), axis=1)
    variance = (np.diff(in_time, axis=1) ** 2).mean(axis=1) / 2.0
    return np.sqrt(variance / num_draws)


def image_errors(estimator: Any, rows: Rows) -> np.ndarray | None:
    """[N] the Monte-Carlo error of each image's bits/dim; None for one draw per image."""
    values = bits_per_dim(rows, estimator.terms)
    return stratified_errors(values, rows["gamma"]) if "gamma" in rows else independent_errors(values)


def of_mean(errors: np.ndarray | None) -> float | None:
    """The error of a mean over images from those of the images."""
    return None if errors is None else float(np.sqrt(np.sum(errors**2)) / len(errors))
