"""The likelihood of images by the probability-flow ODE (`diffusion.likelihood`, `diffusion.dequantization`).

1. Image i has its own key, that of its index. Draw j of n is a bound from K samples, each with
   its own dequantization noise; the probes of the trace are those of the draw, for all of its
   samples, or each sample's own. The image's number depends on nothing else: the step size is
   controlled for each image alone.
2. With K > 1, a Hutchinson trace needs at least two probes, so that the result is a bound
   (`jvdm.diffusion.likelihood`, equation 2).
3. The error of the solver is estimated by solving a random subset of images again, with the same
   noise and probes, at a tenth of the tolerance, or in twice the steps.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm.core import sharding
from jvdm.core.errors import UserError
from jvdm.core.keys import indexed, named
from jvdm.core.precision import full_precision
from jvdm.core.records import as_batch, take
from jvdm.core.registry import Config
from jvdm.diffusion import likelihood
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.paths import invert_increasing
from jvdm.diffusion.solvers import SOLVERS
from jvdm.evaluation import record
from jvdm.evaluation.estimator import ESTIMATORS, Examples
from jvdm.evaluation.passes import Batches
from jvdm.evaluation.record import ODESettings, Provenance, Result, SolverError
from jvdm.evaluation.rows import Rows
from jvdm.evaluation.vlb import for_evaluation
from jvdm.model import Model
from jvdm.model.checks import check_process

Params = Any


class Sample(NamedTuple):
    """One dequantized sample of each image, nats.

    Attributes:
        prior: [b] log N(z_1).
        trace: [b, m] the integral of the divergence, by probe.
        log_q, log_decoder: [b] of the dequantization.
        latent: [b] what a latent costs: its charge, or, with K > 1, log q - log p of the sample.
        surrogate: [b] what the released code charges, where that is not a bound; otherwise the same.
        evaluations: [b] of the network.
        ok: [b] the solver reached the end time.
    """

    prior: jax.Array
    trace: jax.Array
    log_q: jax.Array
    log_decoder: jax.Array
    latent: jax.Array
    surrogate: jax.Array
    evaluations: jax.Array
    ok: jax.Array


@ESTIMATORS.register("ode")
@dataclasses.dataclass(eq=False)
class ODE:
    """The compiled ODE likelihood.

    Its rows are the terms, [N, n] bits/dim, and `nfe`, [N, n], network evaluations per sample, averaged over
    the K samples of a draw. Terms of a bound from several samples are their weighted means, and `importance`
    is what remains: log K less the entropy of the weights.

    Args:
        model: as `for_evaluation` returns it.
        mesh: has a `data` axis.
        config: the section `eval.ode`.

    Raises:
        UserError: parts that do not go together.
    """

    model: Model
    mesh: Mesh
    config: Config
    name: ClassVar[str] = "ode"
    draws_field: ClassVar[str] = "ode.draws"
    terms: tuple[str, ...] = dataclasses.field(
        init=False, default=("reconstruction", "prior", "trace", "dequantization", "importance")
    )
    shown: ClassVar[tuple[str, ...]] = ("nfe",)

    def __post_init__(self):
        model, config = self.model, self.config
        check_process(model.process, "drift", "the estimator ode")
        self._batch_size = config.batch_size
        self._batches = Batches(self.mesh, config.batch_size, "config.eval.ode.batch_size")
        self._draws, self._samples = config.draws, config.importance_samples
        self.dequantization = DEQUANTIZATIONS.build(config.dequantization)
        self.trace = TRACES.build(config.trace)
        self.solver = SOLVERS.build(config.solver)
        self._share_probes = config.share_probes
        name = config.dequantization.name
        if self.dequantization.discrete != bool(model.num_levels):
            raise UserError(
                f"config.eval.ode.dequantization.name={name} is not for "
                + ("discrete data" if model.num_levels else "continuous data: choose none")
            )
        if model.per_pixel and self.dequantization.start_gamma > model.schedule.gamma_min:
            raise UserError(
                f"config.eval.ode.dequantization.start_gamma={self.dequantization.start_gamma} is at another "
                f"time for every pixel: give at most {model.schedule.gamma_min}"
            )
        if model.latent is not None:
            self.terms = (*ODE.terms, "latent")
        start_gamma = max(self.dequantization.start_gamma, model.schedule.gamma_min)
        if start_gamma == -np.inf:
            raise UserError(
                f"config.eval.ode.dequantization.name={name} needs noise at time 0, of which this schedule "
                "has none: choose uniform, or config.schedule.t_min above 0"
            )
        if self._samples > 1:
            if self.dequantization.analytic_entropy:
                raise UserError(
                    "config.eval.ode.importance_samples above 1 needs the density of each sample: "
                    "config.eval.ode.dequantization.analytic_entropy=False"
                )
            if not self.trace.exact and self.trace.probes < 2:
                raise UserError(
                    "config.eval.ode.importance_samples above 1 needs config.eval.ode.trace.probes=2 or "
                    "more: with a single noisy trace the result would not be a bound"
                )
        self._scale = model.units_per_nat
        self._sample = self._compile(self.solver)

    @classmethod
    def from_config(cls, config: Config, model: Model, mesh: Mesh) -> Self:
        """As `Estimator.from_config`."""
        return cls(for_evaluation(model, 0), mesh, config.eval.ode)

    @property
    def draws(self) -> int:
        """Per image."""
        return self._draws

    @property
    def latent(self) -> Any:
        """The model's, or None."""
        return self.model.latent

    def _compile(self, solver: Any) -> Any:
        """(params, root key, batch, indices of its images, draw, sample) -> Sample."""
        model, dequantization, trace = self.model, self.dequantization, self.trace
        share_probes, num_samples = self._share_probes, self._samples

        def start_of(params):
            """The time at which the ODE starts."""
            if model.per_pixel:
                return jnp.zeros(())
            gamma_0 = model.gamma(params, jnp.zeros(()))
            gamma = jnp.maximum(gamma_0, dequantization.start_gamma)
            t = invert_increasing(lambda t: model.gamma(params, t), gamma, jnp.zeros(()), jnp.ones(()))
            return jnp.where(gamma > gamma_0, t, 0.0)

        def sample(params, root_key, batch, index, draw, k):
            draw_keys = indexed(named(indexed(root_key, index), "draws"), draw)
            keys = indexed(named(draw_keys, "samples"), k)
            noise = None if model.latent is None else jax.vmap(model.latent.draw)(keys)
            context, cost = model.encode_latent(params, batch, noise)
            start = start_of(params)
            at = model.at(params, start[None], context)
            at_one = jax.tree.map(lambda a: a[0], at)
            levels = model.num_levels
            noise = jax.vmap(lambda key, x: dequantization.draw(key, x, at_one, levels, model.data_map))(
                keys, batch.x
            )
            dequantized = dequantization(batch.x, noise, at, levels, model.data_map)
            prior = model.prior(params)

            field = likelihood.batched_field(model.ode_drift, trace)

            def solve(z, context, key):
                probes = trace.draw(key, model.data_shape)
                return likelihood.integrate(
                    field(params, context, probes),
                    z,
                    num_probes=len(probes),
                    start=start,
                    prior=prior,
                    solver=solver,
                )

            result = jax.vmap(solve)(dequantized.z, context, draw_keys if share_probes else keys)
            latent = jnp.zeros_like(result.prior) if cost is None else cost.charge
            if num_samples > 1 and cost is not None and cost.log_ratio is not None:
                latent = cost.log_ratio
            return Sample(
                result.prior,
                result.trace,
                dequantized.log_q,
                dequantized.log_decoder,
                latent,
                latent if cost is None or cost.surrogate is None else cost.surrogate,
                result.evaluations,
                result.ok,
            )

        everywhere, by_example = sharding.replicated(self.mesh), sharding.split(self.mesh)
        return jax.jit(
            sample,
            in_shardings=(everywhere, everywhere, by_example, by_example, None, None),
            out_shardings=everywhere,
        )

    def rows(
        self, params: Params, examples: Examples, key: jax.Array, *, first: int = 0, start: int = 0
    ) -> Iterator[Rows]:
        """The terms of the images from `first` on, chunk by chunk, in order.

        Args:
            params: the model's.
            examples: N images, and what is known of each.
            key: the root from which image i's key is folded.
            first: the images before it are left out.
            start: the index of the first of all examples, by which its key is folded.

        Raises:
            UserError: the solver did not reach the end time for an image.
        """
        key = named(key, self.name)
        for batch, index, real in self._batches(examples, first, start=start):
            samples = self._solve(self._sample, params, key, batch, index, self._draws, self._samples)
            samples = jax.tree.map(lambda a, real=real: a[:real], samples)
            self._check(samples, first)
            yield self._combine(samples)
            first += real

    def _solve(self, sample, params, key, batch, index, draws, num_samples) -> Sample:
        """Samples with two more axes after the images': [b, n, K, ...]."""
        with full_precision():
            parts = [
                sample(params, key, batch, index, draw, k)
                for draw in range(draws)
                for k in range(num_samples)
            ]
        parts = jax.device_get(parts)
        stacked = jax.tree.map(lambda *a: np.stack(a, axis=1), *parts)
        return jax.tree.map(lambda a: a.reshape(len(a), draws, num_samples, *a.shape[2:]), stacked)

    def _combine(self, samples: Sample) -> Rows:
        """The rows of a chunk."""
        prior, log_q, log_decoder, latent = (
            np.asarray(a, np.float64)
            for a in (samples.prior, samples.log_q, samples.log_decoder, samples.latent)
        )
        trace = np.asarray(samples.trace, np.float64)
        weighted = likelihood.importance_bound(trace + (prior + log_decoder - log_q - latent)[..., None])
        mean = (weighted.weights[..., None] * trace).mean(axis=-1)
        terms = {
            "reconstruction": -(weighted.weights * log_decoder).sum(axis=-1),
            "prior": -(weighted.weights * prior).sum(axis=-1),
            "trace": -mean.sum(axis=-1),
            "dequantization": (weighted.weights * log_q).sum(axis=-1),
        }
        if self.model.latent is not None:
            terms["latent"] = (weighted.weights * latent).sum(axis=-1)
        terms["importance"] = -weighted.bound - sum(terms.values())
        rows = {name: self._scale * term for name, term in terms.items()}
        if self.model.latent is not None and not self.model.latent.is_bound:
            rows["surrogate"] = self._scale * np.asarray(samples.surrogate, np.float64).mean(axis=-1)
        return {**rows, "nfe": np.mean(samples.evaluations, axis=-1)}

    def _check(self, samples: Sample, first: int) -> None:
        failed = np.flatnonzero(~samples.ok.all(axis=(1, 2)))
        if failed.size:
            names = ", ".join(str(first + i) for i in failed[:8]) + (", ..." if failed.size > 8 else "")
            remedy = (
                "raise config.eval.ode.solver.max_steps or config.eval.ode.solver.tolerance"
                if hasattr(self.solver, "max_steps")
                else "raise config.eval.ode.solver.num_steps"
            )
            raise UserError(
                f"the ODE solver ({self.solver.text()}) did not reach the end time for "
                f"{failed.size} image(s): {names}; {remedy}"
            )

    def solver_error(
        self, params: Params, examples: Examples, key: jax.Array, *, num_images: int, start: int = 0
    ) -> SolverError:
        """The error of the solver on a random subset, of the first sample of the first draw.

        Args:
            params, examples, key, start: as in `rows`.
            num_images: of the subset, at most all.

        Raises:
            UserError: the refined solver did not reach the end time.
        """
        whole, key = as_batch(examples), named(key, self.name)
        num_images = min(num_images, len(whole.x))
        chosen = np.sort(np.random.default_rng(0).permutation(len(whole.x))[:num_images])
        finer = self.solver.finer()
        fine = self._compile(finer)
        differences = []
        # No larger than the subset: padding would be solved too.
        batches = Batches(self.mesh, min(self._batch_size, num_images), "config.eval.ode.batch_size")
        # The subset's images keep the keys of their places in the whole.
        for batch, index, real in batches(take(whole, chosen), index=(start + chosen).astype(np.int32)):
            pair = [self._solve(solve, params, key, batch, index, 1, 1) for solve in (self._sample, fine)]
            if not all(samples.ok[:real].all() for samples in pair):
                raise UserError(
                    f"the refined ODE solver ({finer.text()}), which gives the error, did not reach the end "
                    "time; "
                    "set config.eval.ode.check_images=0 or raise config.eval.ode.solver.max_steps"
                )
            log_p = [np.asarray(s.prior, np.float64) + s.trace.mean(axis=-1) for s in pair]
            differences.append(-self._scale * (log_p[0] - log_p[1])[:real].ravel())
        difference = np.concatenate(differences)
        return SolverError(
            bias=float(difference.mean()),
            standard_error=float(difference.std(ddof=1) / np.sqrt(num_images)) if num_images > 1 else None,
            rms=float(np.sqrt(np.mean(difference**2))),
            num_images=num_images,
            finer=finer.text(),
        )

    def settings(self) -> dict[str, Any]:
        """The fields of `ODESettings` that the config gives."""
        return {
            **{part: self.config[part].to_dict() for part in ("dequantization", "trace", "solver")},
            "importance_samples": self._samples,
            "share_probes": self._share_probes,
        }

    def description(self) -> str:
        """As `Estimator.description`."""
        name = self.config.dequantization.name
        return "ODE" if name == "none" else f"ODE, {name.replace('_', ' ')}, K = {self._samples}"

    def file_name(self) -> str:
        """As `Estimator.file_name`: "ode_truncated_normal_K1_dopri5_1e-05"; the usual is left out."""
        dequantization, trace, solver = (self.settings()[p] for p in ("dequantization", "trace", "solver"))
        steps = f"{solver['tolerance']:g}" if "tolerance" in solver else f"{solver['num_steps']}"
        more = "_exact_trace" if trace["name"] == "exact" else ""
        if trace.get("probes", 1) > 1:
            more += f"_{trace['probes']}_probes"
        if trace.get("distribution", "rademacher") != "rademacher":
            more += f"_{trace['distribution']}"
        if dequantization.get("analytic_entropy"):
            more += "_analytic_entropy"
        if self._samples > 1 and not self._share_probes:
            more += "_own_probes"
        return f"ode_{dequantization['name']}_K{self._samples}_{solver['method']}_{steps}{more}"

    def result(
        self, rows: Rows, provenance: Provenance, *, params: Params, examples: Examples, key: jax.Array
    ) -> Result:
        """As `Estimator.result`, with the error of the solver if the config asks for it.

        Raises:
            UserError: the refined solver did not reach the end time.
        """
        error, check_images = None, self.config.check_images
        if check_images:
            start = provenance.first_index
            error = self.solver_error(params, examples, key, num_images=check_images, start=start)
        return record.result(
            self,
            rows,
            provenance,
            prior=self.model.process.prior_text,
            num_samples=self._samples,
            ode=ODESettings(
                **self.settings(),
                mean_nfe=float(np.mean(rows["nfe"])),
                max_nfe=float(np.max(rows["nfe"])),
                solver_error=error,
            ),
        )
