"""Forty small faults in the mathematics, each with the tests that must catch it (`scripts/mutate.py`).

A fault is one that a person makes: a sign, a factor of two, a missing log K, the time s in place of t. Its
tests are those of its module in the fast suite, so that whoever breaks the module sees it within minutes.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        what: in words.
        file: in the repository.
        old: a snippet that the file has exactly once.
        new: what replaces it.
        tests: files of tests, in the repository; the first is the likeliest to fail.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, *tests: str):
    """Mutants of one file under jvdm/, with its tests under tests/."""
    paths = tuple(f"tests/{test}.py" for test in tests)

    def mutant(what: str, old: str, new: str) -> Mutant:
        return Mutant(what, f"jvdm/{file}.py", old, new, paths)

    return mutant


_schedules = _of("diffusion/schedules", "diffusion/test_schedules")
_per_pixel = _of("diffusion/per_pixel_schedules", "diffusion/test_per_pixel_schedules")
_transforms = _of("diffusion/transforms", "diffusion/test_transforms")
_dequantization = _of("diffusion/dequantization", "diffusion/test_dequantization")
_divergence = _of("diffusion/divergence", "diffusion/test_divergence")
_solvers = _of("diffusion/solvers", "diffusion/test_solvers")
_latents = _of("diffusion/latents", "diffusion/test_latents")
_subsets = _of("diffusion/subsets", "diffusion/test_subsets")
_times = _of("diffusion/times", "diffusion/test_time_samplers", "diffusion/test_time_densities")
_gradients = _of("training/gradients", "training/test_gradients", "model/test_latent_model")
_step = _of("training/step", "training/test_step")
_slices = _of("evaluation/slices", "evaluation/test_vlb")
_rows = _of("evaluation/rows", "evaluation/test_vlb")
_pipeline = _of("data/pipeline", "data/test_data_pipeline")
_normal = _of("diffusion/normal", "diffusion/test_process")
_gaussian = _of("diffusion/gaussian", "diffusion/test_process")
_losses = _of("diffusion/losses", "diffusion/test_losses", "model/test_second_order")
_score_bounds = _of("diffusion/score_bounds", "diffusion/test_score_bounds")
_likelihood = _of("diffusion/likelihood", "diffusion/test_likelihood")
_parameterizations = _of("diffusion/parameterizations", "diffusion/test_parameterizations")
_paths = _of("diffusion/paths", "diffusion/test_paths")
_samplers = _of("diffusion/samplers", "diffusion/test_samplers", "diffusion/test_reverse_sde")
_objectives = _of("model/objectives", "evaluation/test_bounds")
_vlb = _of("evaluation/vlb", "evaluation/test_vlb")
_ode = _of("evaluation/ode", "evaluation/test_ode")

MUTANTS = (
    # Schedules and times.
    _schedules(
        "the integral of beta without its 1/2",
        "s * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * s)",
        "s * (self.beta_min + (self.beta_max - self.beta_min) * s)",
    ),
    _schedules(
        "the monotone network not shifted to start at gamma_0",
        "(g(t) - start) / (end - start)",
        "g(t) / (end - start)",
    ),
    _schedules(
        "the root of the inverse of linear beta without its factor of two",
        "jnp.sqrt(b**2 + 2.0 * a * integral)",
        "jnp.sqrt(b**2 + a * integral)",
    ),
    _per_pixel("Gauss's weights all alike", "(5 / 18, 8 / 18, 5 / 18)", "(1 / 3, 1 / 3, 1 / 3)"),
    _per_pixel("s(u) in place of s(-u)", "jax.nn.sigmoid(-at_0)", "jax.nn.sigmoid(at_0)"),
    _times(
        "alpha in place of its square in the weight of importance-sampled times",
        "(high - low) / (alpha**2 * span)",
        "(high - low) / (alpha * span)",
    ),
    _times(
        "stratified times one n-th too close",
        "jnp.arange(n, dtype=u_0.dtype) / n,",
        "jnp.arange(n, dtype=u_0.dtype) / (n + 1),",
    ),
    # From levels to continuous data.
    _transforms(
        "the slope of the logit with 1 - a for 1 - 2 a",
        "math.log(1.0 - 2.0 * self.a) - log_s",
        "math.log(1.0 - self.a) - log_s",
    ),
    _transforms(
        "log K missing from the density of uniform dequantization",
        "Mapped(y, math.log(num_levels) - log_slope)",
        "Mapped(y, -log_slope)",
    ),
    _dequantization(
        "log Z missing from the density of the truncated normal",
        "_per_example(log_scale + log_mass, e)",
        "_per_example(log_scale, e)",
    ),
    _dequantization(
        "the entropy of the truncated normal without a factor of two",
        "slope / (2.0 * math.sqrt(2.0 * math.pi) * mass)",
        "slope / (math.sqrt(2.0 * math.pi) * mass)",
    ),
    _dequantization(
        "the sign of log alpha in the density of z = alpha y",
        "sum_example(log_q) - _per_example(jnp.log(alpha), y)",
        "sum_example(log_q) + _per_example(jnp.log(alpha), y)",
    ),
    # The ODE's parts.
    _divergence(
        "the mean for the sum in v . J v",
        "return jnp.sum(v * tangent, axis=tuple(range(batch_axes, z.ndim)))",
        "return jnp.mean(v * tangent, axis=tuple(range(batch_axes, z.ndim)))",
    ),
    _divergence(
        "every tangent multiplied with the first probe",
        "lambda v: product(v, push_forward(v))",
        "lambda v: product(probes[0], push_forward(v))",
    ),
    _solvers(
        "the last two weights of RK4 exchanged",
        "b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6])",
        "b_sol=np.array([1 / 6, 1 / 3, 1 / 6, 1 / 3])",
    ),
    _solvers("the sum for the mean in the error of a step", "jnp.mean(a**2)", "jnp.sum(a**2)"),
    # Latents.
    _latents(
        "the variance for the deviation in a Gaussian sample",
        "mean + jnp.exp(0.5 * log_variance) * noise",
        "mean + jnp.exp(log_variance) * noise",
    ),
    _latents(
        "log m missing from the KL to the uniform prior",
        "(log_q + math.log(logits.shape[-1]))",
        "log_q",
    ),
    _subsets(
        "a pixel's own weight missing from the probability to take it",
        "jax.nn.sigmoid(theta_i + at(_one_less(row)) - at(row))",
        "jax.nn.sigmoid(at(_one_less(row)) - at(row))",
    ),
    _subsets(
        "the baseline's own sample not taken out: n / (n - 1) lost",
        "jax.lax.stop_gradient(losses - jnp.mean(losses, axis=0, keepdims=True)) * (n / (n - 1))",
        "jax.lax.stop_gradient(losses - jnp.mean(losses, axis=0, keepdims=True))",
    ),
    _subsets(
        "no stop_gradient of log q, so that leave-one-out has a value",
        "advantage * (log_q - jax.lax.stop_gradient(log_q))",
        "advantage * log_q",
    ),
    # Training.
    _gradients(
        "the gradient of E[l^2] without its factor of two",
        "expand(2.0 * scale * terms.diffusion",
        "expand(scale * terms.diffusion",
    ),
    _gradients(
        "the same latent twice in leave-one-out",
        "draws._replace(latent=draws.other_latent)",
        "draws._replace(latent=draws.latent)",
    ),
    _step(
        "microbatches summed where their mean is meant",
        "lambda a, b: a + b / num_micro, grads, more",
        "lambda a, b: a + b, grads, more",
    ),
    _step(
        "the same key in every step",
        "jax.random.fold_in(state.root_key, state.step)",
        "jax.random.fold_in(state.root_key, 0)",
    ),
    # Evaluation and data.
    _slices(
        "an image's key folded from its place in the batch",
        "fold_in_each(root_key, index)",
        "fold_in_each(root_key, jnp.arange(index.shape[0]))",
    ),
    _rows(
        "the mean for the difference of neighbours: a factor of two in the Monte-Carlo variance",
        ".mean(axis=1) / 2.0",
        ".mean(axis=1)",
    ),
    _pipeline(
        "the same order in every epoch",
        "_philox(self._seed, _ORDERS + epoch)",
        "_philox(self._seed, _ORDERS)",
    ),
    # The bounds, samplers and likelihood.
    _normal(
        "exp for expm1 in the divergence of normals",
        "(jnp.expm1(log_ratio) - log_ratio)",
        "(jnp.exp(log_ratio) - log_ratio)",
    ),
    _losses(
        "no stop_gradient around the error of the second-order penalty",
        "e = jax.lax.stop_gradient(squared_error)",
        "e = squared_error",
    ),
    _score_bounds(
        "div f missing from the random slice",
        "factor * jnp.mean(traces, axis=0) + drift",
        "factor * jnp.mean(traces, axis=0)",
    ),
    _likelihood("1/K lost from the bound of K samples", " - math.log(scores.shape[-1])", ""),
    _gaussian(
        "c for 1 - c in the mean of the posterior",
        "at_s.alpha / at_t.alpha * (1.0 - c) * z_t",
        "at_s.alpha / at_t.alpha * c * z_t",
    ),
    _parameterizations("alpha for sigma", "scale=-c.alpha / c.sigma", "scale=-c.sigma / c.alpha"),
    _paths(
        "a factor of two in the sub-variance-preserving drift",
        "-0.5 / jnp.sqrt(1.0 + 4.0 * jnp.exp(-gamma))",
        "-0.5 / jnp.sqrt(1.0 + 2.0 * jnp.exp(-gamma))",
    ),
    _samplers(
        "the whole score in place of half of it",
        "0.5 * (1.0 - self.lam) * prediction.g2_score",
        "(1.0 - self.lam) * prediction.g2_score",
    ),
    _samplers(
        "the coefficients at t in place of s",
        "process.at(params, s, context)",
        "process.at(params, t, context)",
    ),
    _objectives(
        "the step above t in place of the one below",
        "t - 1.0 / model.timesteps",
        "t + 1.0 / model.timesteps",
    ),
    _vlb(
        "biased times of training kept in the evaluation",
        "UniformDensity() if timesteps or not model.time_density.unbiased else model.time_density",
        "UniformDensity() if timesteps else model.time_density",
    ),
    _ode(
        "log q charged twice: its sign in the dequantization term",
        '"dequantization": (weighted.weights * log_q).sum(axis=-1)',
        '"dequantization": -(weighted.weights * log_q).sum(axis=-1)',
    ),
)
