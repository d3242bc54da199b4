"""The typed record of one evaluation: a number, its errors, and where it came from."""

import dataclasses
import json
import math
import pathlib
import sys

import flax
import jax
import numpy as np

import jvdm
from jvdm.evaluation.vlb import ImageTerms
from jvdm.reporting.files import write_atomically
from jvdm.reporting.tables import with_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the bound, bits/dim: its mean over images and its standard error."""

    mean: float
    standard_error: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation. Losses are bits/dim.

    Attributes:
        estimator: "vlb" (the variational bound).
        is_bound: the expectation of `bits_per_dim` is an upper bound on the true value.
        timesteps: T of a discrete-time bound; 0 is continuous time.
        num_levels: K, values per dimension.
        bits_per_dim: mean over images.
        standard_error: of that mean, over images; None for one image.
        monte_carlo_error: the part of it that more draws per image would remove; None for one draw.
        terms: the decomposition.
        num_images, num_draws: images, and draws for each.
        dataset, dataset_version, dataset_hash, split: what was evaluated.
        checkpoint, step, weights: what it was evaluated with; weights are "ema", the averaged ones.
        seed: of the evaluation's root key.
        matmul_precision: of every matrix product and convolution.
        versions, device, num_devices: what it ran on.
    """

    estimator: str
    is_bound: bool
    timesteps: int
    num_levels: int
    bits_per_dim: float
    standard_error: float | None
    monte_carlo_error: float | None
    terms: dict[str, Term]
    num_images: int
    num_draws: int
    dataset: str
    dataset_version: str
    dataset_hash: str
    split: str
    checkpoint: str
    step: int
    weights: str
    seed: int
    matmul_precision: str
    versions: dict[str, str]
    device: str
    num_devices: int

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    def write(self, path: pathlib.Path) -> None:
        """Write the record as JSON.

        Raises:
            UserError: it cannot be written.
        """
        write_atomically(path, lambda file: file.write(self.to_json().encode()))

    def text(self) -> str:
        """The number with its error, "2.0134 ± 0.0021"."""
        if self.standard_error is None:
            return f"{self.bits_per_dim:.4f}"
        return with_error(self.bits_per_dim, self.standard_error)

    def row(self) -> dict[str, str]:
        """The record as a row of a table for people."""
        return {
            "estimator": "VLB, continuous" if not self.timesteps else f"VLB, T = {self.timesteps}",
            "bits/dim": self.text(),
            "Monte-Carlo": "-" if self.monte_carlo_error is None else f"{self.monte_carlo_error:.4f}",
            **{name: f"{term.mean:.4f}" for name, term in self.terms.items()},
            "images": str(self.num_images),
            "draws": str(self.num_draws),
            "weights": f"{self.weights}, step {self.step}",
        }


def standard_error(values: np.ndarray) -> float | None:
    """sd / sqrt(N) of [N] values; None for one."""
    n = len(values)
    return float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None


def monte_carlo_error(values: np.ndarray, gamma: np.ndarray) -> float | None:
    """The error of the mean of [N, n] values that comes from the n draws; None for one draw.

    An image's n times are drawn one in each of n equal intervals, so the variance of its mean is that
    within intervals: of the noise, and of the curve of the loss inside one of them. It is estimated from
    neighbours, sum_j (l_(j+1) - l_j)^2 / (2 (n - 1)) (von Neumann's estimator), which adds half the
    squared rise from one interval to the next and so overstates it a little.
    """
    num_images, num_draws = values.shape
    if num_draws < 2:
        return None
    in_time = np.take_along_axis(values, np.argsort(gamma, axis=1), axis=1)
    variance = (np.diff(in_time, axis=1) ** 2).mean(axis=1) / 2.0
    return float(np.sqrt(variance.sum() / num_draws) / num_images)


def environment() -> dict:
    """Versions and device, as fields of a `Result`."""
    return {
        "versions": {
            "jvdm": jvdm.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
        },
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
    }


def vlb_result(image_terms: ImageTerms, *, timesteps: int, num_levels: int, **provenance) -> Result:
    """The record of a variational bound.

    Args:
        image_terms: of all images, bits/dim.
        timesteps: T, 0 for continuous time.
        num_levels: K.
        **provenance: the fields from `dataset` to `seed`.
    """
    total = np.asarray(image_terms.terms.total, np.float64)
    per_image = {
        name: term.mean(axis=1, dtype=np.float64) for name, term in image_terms.terms.parts().items()
    }
    return Result(
        estimator="vlb",
        is_bound=True,
        timesteps=timesteps,
        num_levels=num_levels,
        bits_per_dim=float(total.mean()),
        standard_error=standard_error(total.mean(axis=1)),
        monte_carlo_error=monte_carlo_error(total, image_terms.gamma),
        terms={
            name: Term(mean=float(values.mean()), standard_error=standard_error(values))
            for name, values in per_image.items()
        },
        num_images=total.shape[0],
        num_draws=total.shape[1],
        matmul_precision="float32, highest",
        **provenance,
        **environment(),
    )
