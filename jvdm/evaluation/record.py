"""The typed record of one evaluation: a number, its errors, and where it came from."""

import dataclasses
import hashlib
import json
import math
import pathlib
import sys
from typing import Any

import diffrax
import flax
import jax
import numpy as np

import jvdm
from jvdm.core.files import write_atomically
from jvdm.core.tables import difference_text, with_error
from jvdm.evaluation.ode import ODE, SolverError
from jvdm.evaluation.passes import Rows, bits_per_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the bound, in the result's units: its mean over images and its standard error."""

    mean: float
    standard_error: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESettings:
    """How an ODE likelihood was computed.

    Attributes:
        dequantization: its name and options.
        importance_samples: K of the bound.
        trace: its name and options.
        share_probes: the K samples of a draw have the same probes.
        solver: its name and options.
        prior: the density at time 1.
        mean_nfe, max_nfe: network evaluations per sample, over images.
        solver_error: from a subset solved again more finely; None if that was not asked for.
    """

    dequantization: dict[str, Any]
    importance_samples: int
    trace: dict[str, Any]
    share_probes: bool
    solver: dict[str, Any]
    prior: str
    mean_nfe: float
    max_nfe: float
    solver_error: SolverError | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surrogate:
    """The number as the released code of MuLAN computes it, which is no bound.

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
        checkpoint, step, weights, weights_hash: the parameters; weights are "ema", the averaged ones.
        seed: of the evaluation's root key.
        matmul_precision: of every matrix product and convolution.
        trained_dtype: of the network's trunk in training, whatever the evaluation uses.
        versions, device, num_devices: what it ran on.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation.

    Attributes:
        estimator: "vlb" (the variational bound), "ode" (the probability-flow ODE's likelihood), "elbo" (the
            random-slice bound) or "scoreflow" (the truncated bound).
        is_bound: the expectation of `value` is an upper bound on the true value, but for the error
            of the ODE's solver, which is estimated.
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
        surrogate: what the released code would report of a latent whose charge is no bound; None otherwise.
        provenance: where the number comes from.
    """

    estimator: str
    is_bound: bool
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

    @property
    def name(self) -> str:
        """For files: what tells this evaluation from others of the same workdir."""
        return "_".join(
            [
                kind_name(
                    self.estimator, self.timesteps, self.ode and dataclasses.asdict(self.ode), self.slices
                ),
                f"step{self.provenance.step}_{self.num_images}x{self.num_draws}_seed{self.provenance.seed}",
            ]
        )

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
            return f"{self.value:.4f}"
        return with_error(self.value, self.standard_error)

    def description(self) -> str:
        """The estimator in words."""
        if self.estimator == "elbo" and self.slices:
            probes = self.slices["trace"].get("probes")
            trace = f"{probes} probe{'s' * (probes > 1)}" if probes else "exact trace"
            return f"ELBO, random slice, {trace}"
        if self.estimator == "scoreflow" and self.slices:
            return f"ScoreFlow bound, from t = {self.slices['epsilon']:g}"
        if self.ode is None:
            return "VLB, continuous" if not self.timesteps else f"VLB, T = {self.timesteps}"
        if self.ode.dequantization["name"] == "none":
            return "ODE"
        name = self.ode.dequantization["name"].replace("_", " ")
        return f"ODE, {name}, K = {self.ode.importance_samples}"

    def row(self) -> dict[str, str]:
        """The record as a row of a table for people."""
        error = self.ode.solver_error if self.ode else None
        return {
            "estimator": self.description(),
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


def kind_name(
    estimator: str, timesteps: int, ode: dict[str, Any] | None, slices: dict[str, Any] | None = None
) -> str:
    """For files: "vlb_continuous", "vlb_T1000", "ode_truncated_normal_K1_dopri5_1e-05", "elbo_1_probes"."""
    if slices is not None and estimator == "elbo":
        probes = slices["trace"].get("probes")
        released = "" if slices["prior"] == "noise" else f"_{slices['prior']}"
        return (f"elbo_{probes}_probes" if probes else "elbo_exact") + released
    if slices is not None:
        return f"scoreflow_{slices['epsilon']:g}" + ("" if slices["importance"] else "_uniform_times")
    if ode is None:
        return f"{estimator}_T{timesteps}" if timesteps else f"{estimator}_continuous"
    solver = ode["solver"]
    steps = f"{solver['tolerance']:g}" if "tolerance" in solver else f"{solver['num_steps']}"
    # What is as it usually is has no part in the name.
    trace = ode["trace"]
    more = "_exact_trace" if trace["name"] == "exact" else ""
    if trace.get("probes", 1) > 1:
        more += f"_{trace['probes']}_probes"
    if trace.get("distribution", "rademacher") != "rademacher":
        more += f"_{trace['distribution']}"
    if ode["dequantization"].get("analytic_entropy"):
        more += "_analytic_entropy"
    if ode["importance_samples"] > 1 and not ode["share_probes"]:
        more += "_own_probes"
    name = ode["dequantization"]["name"]
    return f"ode_{name}_K{ode['importance_samples']}_{solver['method']}_{steps}{more}"


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


def weights_hash(params: Any) -> str:
    """The first 16 hex digits of the SHA-256 of all parameters, names included."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def environment() -> dict:
    """Versions and device, as fields of a `Provenance`."""
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
    }


def _result(
    estimator: Any, rows: Rows, provenance: Provenance, *, is_bound: bool = True, **fields: Any
) -> Result:
    total = bits_per_dim(rows, estimator.terms)
    per_image = {name: np.asarray(rows[name], np.float64).mean(axis=1) for name in estimator.terms}
    return Result(
        estimator=estimator.name,
        latent_charge=_charge(
            estimator.latent, K=fields["ode"].importance_samples if fields.get("ode") else 1
        ),
        surrogate=_surrogate(total, rows),
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
        is_bound=is_bound,
        provenance=provenance,
        **{"timesteps": 0, "time_density": None, "ode": None, "slices": None, **fields},
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


def vlb_result(
    estimator: Any, rows: Rows, provenance: Provenance, *, timesteps: int, time_density: str | None
) -> Result:
    """The record of a variational bound.

    Args:
        estimator: the `VLB`.
        rows: of all images.
        provenance: where they come from.
        timesteps: T, 0 for continuous time.
        time_density: the name, None in discrete time.
    """
    return _result(estimator, rows, provenance, timesteps=timesteps, time_density=time_density)


def slice_result(estimator: Any, rows: Rows, provenance: Provenance, *, settings: dict[str, Any]) -> Result:
    """The record of a bound of score-based models.

    Args:
        estimator: a `RandomSliceELBO` or a `ScoreFlowBound`.
        rows: of all images.
        provenance: where they come from.
        settings: its section of the config.
    """
    # The released prior is not normalised.
    is_bound = settings.get("prior", "noise") == "noise"
    return _result(estimator, rows, provenance, is_bound=is_bound, slices=settings)


def ode_result(
    estimator: ODE, rows: Rows, provenance: Provenance, *, settings: dict[str, Any], error: SolverError | None
) -> Result:
    """The record of an ODE likelihood.

    Args:
        estimator: what made the rows.
        rows: of all images.
        provenance: where they come from.
        settings: the fields of `ODESettings` that the config gives.
        error: of the solver.
    """
    ode = ODESettings(
        **settings,
        prior="N(0, sigma_1^2 I)",
        mean_nfe=float(np.mean(rows["nfe"])),
        max_nfe=float(np.max(rows["nfe"])),
        solver_error=error,
    )
    return _result(estimator, rows, provenance, ode=ode)
