"""The typed record of one evaluation: a number, its errors, and where it came from."""

import dataclasses
import hashlib
import json
import pathlib
import sys
from typing import Any

import diffrax
import flax
import jax
import numpy as np

import jvdm
from jvdm.core import formats, keys, settings
from jvdm.core.files import write_atomically
from jvdm.core.tables import difference_text, with_error
from jvdm.evaluation.rows import Rows, bits_per_dim, image_errors, of_mean, standard_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the bound, in the result's units: its mean over images and its standard error."""

    mean: float
    standard_error: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverError:
    """The difference from the number of a refined solver, bits/dim, over the images that were solved twice.

    Attributes:
        bias: mean difference, coarse - fine.
        standard_error: of `bias`, over images; None for one image.
        rms: root mean square difference.
        num_images: solved twice.
        finer: the refined solver.
    """

    bias: float
    standard_error: float | None
    rms: float
    num_images: int
    finer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESettings:
    """How an ODE likelihood was computed.

    Attributes:
        dequantization: its name and options.
        importance_samples: K of the bound.
        trace: its name and options.
        share_probes: the K samples of a draw have the same probes.
        solver: its name and options.
        mean_nfe, max_nfe: network evaluations per sample, over images.
        solver_error: from a subset solved again more finely; None if that was not asked for.
    """

    dequantization: dict[str, Any]
    importance_samples: int
    trace: dict[str, Any]
    share_probes: bool
    solver: dict[str, Any]
    mean_nfe: float
    max_nfe: float
    solver_error: SolverError | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surrogate:
    """The number as the released code of MuLAN computes it, which is not a bound.

    Attributes:
        value: in the result's units.
        charge: the mean of what it charges for the latent.
        difference: why `value` is another number.
    """

    value: float
    charge: float
    difference: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What was evaluated, with what, and on what.

    Attributes:
        dataset, dataset_version, dataset_hash, split: the images.
        num_levels: K, values per dimension; 0 of continuous data.
        checkpoint, step, weights, weights_hash: the parameters; weights are "ema", the averaged ones, or
            "raw", those of the last step.
        seed: of the evaluation's root key.
        first_index: of the first image, by which its random numbers are chosen.
        matmul_precision: of every matrix product and convolution.
        trained_dtype: of the network's trunk in training, whatever the evaluation uses.
        versions, device, num_devices: what it ran on.
        settings: of JAX and XLA, where they are not the defaults (`jvdm.core.settings`).
        random_numbers: the scheme of their keys (`jvdm.core.keys`).
    """

    dataset: str
    dataset_version: str
    dataset_hash: str
    split: str
    num_levels: int
    checkpoint: str
    step: int
    weights: str
    weights_hash: str
    seed: int
    matmul_precision: str
    trained_dtype: str
    versions: dict[str, str]
    device: str
    num_devices: int
    settings: dict[str, str]
    random_numbers: int
    first_index: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation.

    Attributes:
        estimator: the name of one of `jvdm.evaluation.ESTIMATORS`, "vlb".
        description: the estimator in words, "VLB, continuous".
        is_bound: the expectation of `value` is an upper bound on the true value, but for the error
            of the ODE's solver, which is estimated.
        prior: the density of the model at time 1 that the number uses, "N(0, I)".
        latent_charge: what an auxiliary latent costs in the bound; "none" where there is no latent.
        timesteps: T of a discrete-time variational bound; 0 is continuous time.
        time_density: from which the times of a continuous-time variational bound were drawn.
        value: mean over images, in `units`.
        units: "bits/dim" of discrete data, "nats" (of an example) of continuous.
        standard_error: of that mean, over images; None for one image.
        monte_carlo_error: the part of it that more draws per image would remove; None for one draw.
        terms: the decomposition.
        num_images, num_draws: images, and draws for each.
        ode: how an ODE likelihood was computed; None for a bound of another kind.
        slices: the options of "elbo" and "scoreflow"; None for others.
        surrogate: what the released code would report, if the latent's charge is not a bound; else None.
        provenance: where the number comes from.
    """

    estimator: str
    description: str
    is_bound: bool
    prior: str
    latent_charge: str
    timesteps: int
    time_density: str | None
    value: float
    units: str
    standard_error: float | None
    monte_carlo_error: float | None
    terms: dict[str, Term]
    num_images: int
    num_draws: int
    ode: ODESettings | None
    slices: dict[str, Any] | None
    surrogate: Surrogate | None
    provenance: Provenance

    def to_json(self) -> str:
        """The record as JSON text."""
        content = {formats.FIELD: formats.RECORD, **dataclasses.asdict(self)}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def write(self, path: pathlib.Path) -> None:
        """Write the record as JSON.

        Raises:
            UserError: it cannot be written.
        """
        write_atomically(path, lambda file: file.write(self.to_json().encode()))

    def text(self) -> str:
        """The number with its error, "2.0134 ± 0.0021"."""
        if self.standard_error is None:
            return f"{self.value:.4f}"
        return with_error(self.value, self.standard_error)

    def row(self) -> dict[str, str]:
        """The record as a row of a table."""
        error = self.ode.solver_error if self.ode else None
        return {
            "estimator": self.description,
            self.units: self.text(),
            "Monte-Carlo": "-" if self.monte_carlo_error is None else f"{self.monte_carlo_error:.4f}",
            "solver": "-" if error is None else difference_text(error.bias, error.standard_error),
            "NFE": "-" if self.ode is None else f"{self.ode.mean_nfe:.0f}",
            "images": str(self.num_images),
            "draws": str(self.num_draws),
            **({} if self.surrogate is None else {"as released": f"{self.surrogate.value:.4f} (no bound)"}),
            "weights": f"{self.provenance.weights}, step {self.provenance.step}",
        }

    def terms_text(self) -> str:
        """The decomposition in one line."""
        return " + ".join(f"{name} {term.mean:.4f}" for name, term in self.terms.items())


def weights_hash(params: Any) -> str:
    """The first 16 hex digits of the SHA-256 of all parameters, names included."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def environment() -> dict:
    """Versions, device and settings, as fields of a `Provenance`."""
    return {
        "versions": {
            "jvdm": jvdm.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "diffrax": diffrax.__version__,
            "numpy": np.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
        },
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "settings": settings.recorded(),
        "random_numbers": keys.SCHEME,
    }


def result(
    estimator: Any,
    rows: Rows,
    provenance: Provenance,
    *,
    prior: str,
    is_bound: bool = True,
    num_samples: int = 1,
    timesteps: int = 0,
    time_density: str | None = None,
    ode: ODESettings | None = None,
    slices: dict[str, Any] | None = None,
) -> Result:
    """The record of an estimator's numbers.

    Args:
        estimator: whose name, terms, latent and description are stated.
        rows: of all images.
        provenance: where they come from.
        prior: p(z_1), in words.
        is_bound, timesteps, time_density, ode, slices: as in `Result`.
        num_samples: K, by which the charge of a latent is stated.
    """
    total = bits_per_dim(rows, estimator.terms)
    per_image = {name: np.asarray(rows[name], np.float64).mean(axis=1) for name in estimator.terms}
    return Result(
        estimator=estimator.name,
        description=estimator.description(),
        is_bound=is_bound,
        prior=prior,
        latent_charge=_charge(estimator.latent, K=num_samples),
        timesteps=timesteps,
        time_density=time_density,
        value=float(total.mean()),
        units="bits/dim" if provenance.num_levels else "nats",
        standard_error=standard_error(total.mean(axis=1)),
        monte_carlo_error=of_mean(image_errors(estimator, rows)),
        terms={
            name: Term(mean=float(values.mean()), standard_error=standard_error(values))
            for name, values in per_image.items()
        },
        num_images=total.shape[0],
        num_draws=total.shape[1],
        ode=ode,
        slices=slices,
        surrogate=_surrogate(total, rows),
        provenance=provenance,
    )


def _charge(latent: Any, *, K: int) -> str:
    """How a latent is charged, in words."""
    if latent is None:
        return "none"
    if not latent.is_bound:
        return f"{latent.mode_charge:.4f} nats by the prior, of the likeliest latent, which the image fixes"
    return "exact KL(q || p)" if K == 1 else "log q - log p of each sample"


def _surrogate(total: np.ndarray, rows: Rows) -> Surrogate | None:
    if "surrogate" not in rows:
        return None
    charge, valid = (float(np.mean(rows[name], dtype=np.float64)) for name in ("surrogate", "latent"))
    return Surrogate(
        value=float(total.mean()) + charge - valid,
        charge=charge,
        difference="charges the KL of one class of m, at most ln m, for k of m, which cost ln C(m, k)",
    )
