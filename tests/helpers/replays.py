"""What the replays of recorded numbers have in common: a model with a checkpoint's weights, and comparisons.

Both sides compute in float32, in different orders of operations, so each tolerance is a multiple of
float32's rounding (6e-8) times how far the quantity amplifies it. They bound

    |ours - theirs|_max / |theirs|_max

except where said otherwise. `pytest -rP` shows every deviation.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from helpers import peers, quick
from jvdm import importers
from jvdm.core.records import Batch, Coefficients, Conditioning, Context, Draws, LossTerms
from jvdm.diffusion import divergence, losses, samplers
from jvdm.diffusion.times import stratify
from jvdm.importers import flax_checkpoint, vdm
from jvdm.model import Model, objectives

ROUNDING = 2.0**-24
# A quarter of the time to compile; the tests run most functions a few times only.
QUICK = quick.OPTIONS
OPTIMIZED = {"xla_backend_optimization_level": 3}


def jit(fn, *, optimize: bool = False):
    """Compiled; optimised if it is to run hundreds of evaluations of the network."""
    return jax.jit(fn, compiler_options=OPTIMIZED if optimize else QUICK)


def drift_and_divergence(drift: Callable) -> Callable:
    """Compiled: an ODE's dz/dt, v . J v [b] of its Jacobian J, and |J v| [b], the size of what that sums up.

    Args:
        drift: as `Model.ode_drift`.

    Returns:
        (params, z [b, ...], context, probe v [b, ...], t) -> these.
    """
    trace = divergence.Hutchinson()

    def evaluate(params, z, context, probe, t):
        def at_t(z):
            return drift(params, z, jnp.full(len(z), t), context)

        value, estimates = trace(at_t, z, probe[None], batch_axes=1)
        _, tangent = jax.jvp(at_t, (z,), (probe,))
        return value, estimates[0], jnp.sqrt(losses.sum_example(tangent**2))

    return jit(evaluate)


def note(quantity: str, figure: float) -> None:
    """Prints a figure, for `pytest -rP`."""
    print(f"{quantity}: {figure:.1e}")


def check(quantity: str, ours: Any, theirs: Any, tolerance: Any) -> None:
    """Asserts the deviation, and prints it."""
    ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs))
    assert ours.shape == theirs.shape
    deviation = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
    note(quantity, deviation)
    assert deviation <= tolerance, f"{quantity} differs by {deviation:.2e} > {tolerance:.2e}"


def per_image(a: np.ndarray) -> jax.Array:
    """[b] -> [b, 1, 1, 1], the shape of gamma in a model: one shape, one compilation."""
    return jnp.asarray(a)[:, None, None, None]


class Leaf(NamedTuple):
    """Measurements of one leaf, in float64."""

    gradient: np.ndarray
    noise: float  # how far rounding moves an element of the gradient, root mean square
    independent: int  # numbers that the noise is made of
    params: np.ndarray
    ema_params: np.ndarray


class Replay:
    """jvdm's model with the weights of one case; everything is computed once.

    Args:
        case: the recorded one.
        source: a key of `importers.IMPORTERS`.
        model: what the case's settings stand for.
        second_order: lambda of the penalty in the training loss.
    """

    # The source's leaves on ours (`jvdm.importers.vdm`).
    correspondence = staticmethod(vdm.correspondence)

    def __init__(self, case: peers.Case, source: str, model: Model, *, second_order: float = 0.0):
        self.io = case.io
        self.settings = case.config["model"]
        self.step = case.config["step"]
        self.model = model
        self.imported = importers.load(source, str(case.checkpoint), self.model)
        self.source = flax_checkpoint.read(case.checkpoint)
        self.params = jax.tree.map(jnp.asarray, self.imported.params)
        self.ema_params = jax.tree.map(jnp.asarray, self.imported.ema_params)
        self.batch = Batch(
            jnp.asarray(self.io["images"]), Conditioning(augmented=jnp.asarray(self.io["conditioning"]))
        )
        self.context = Context(self.batch.conditioning)
        self.output = jit(self.model.output)

        # The images are an argument, so that cases of one model share one compiled program.
        def bits_per_dim(params: Any, draws: Draws, batch: Batch) -> tuple[jax.Array, LossTerms]:
            terms = objectives.bound(self.model, params, draws, batch, second_order=second_order)
            return self.to_bits_per_dim(terms.objective), terms

        self._value_and_grad = jit(jax.value_and_grad(bits_per_dim, has_aux=True))

        def reconstruction(eps_0, gamma_0, images):
            alpha_0, _ = self.model.path.alpha_sigma(gamma_0)
            decoder_scale = self.model.decoder_scale(alpha_0)
            return jnp.sum(
                losses.reconstruction(images, eps_0, gamma_0, self.model.num_levels, decoder_scale)
            )

        self._slope = jit(jax.grad(reconstruction))

    def to_bits_per_dim(self, nats: jax.Array) -> jax.Array:
        """The mean over the images of nats [b]."""
        return jnp.mean(nats) / (self.model.num_dims * np.log(2.0))

    def draws(self, prefix: str = "") -> Draws:
        """The recorded draws, times by the peer's rule."""
        if self.settings["antithetic_time_sampling"]:
            u = stratify(jnp.asarray(self.io[f"{prefix}t0"]), self.io["images"].shape[0])
        else:
            u = jnp.asarray(self.io[f"{prefix}t_raw"])
        probe = self.io.get(f"{prefix}probe_v")
        return Draws(
            u,
            jnp.asarray(self.io[f"{prefix}eps"]),
            jnp.asarray(self.io[f"{prefix}eps_0"]),
            None if probe is None else jnp.asarray(probe, jnp.float32),
        )

    def coefficients(self, t: Any) -> Any:
        """Coefficients of the EMA weights' schedule at times [n]; if it depends on images, the first n's."""
        context = jax.tree.map(lambda a: a[: len(t)], self.context)
        times = jnp.asarray(t, jnp.float32)
        return self.model.at(self.ema_params, times, context)

    def step_to(self, at_s: Coefficients, length: float, context: Context | None = None) -> samplers.Step:
        """A sampler's step of the EMA weights' process."""
        model = self.model
        context = self.context if context is None else context
        data_range = model.data_map.range
        return samplers.Step(model.process, self.ema_params, at_s, length, data_range, context)

    def need(self, key: str) -> None:
        """Skips a test of what the case does not have."""
        if key not in self.io:
            pytest.skip(f"the case has no {key}")

    def skip_dropout(self) -> None:
        """Skips a test whose numbers come of random masks."""
        if self.settings["sm_pdrop"]:
            pytest.skip("the case trains with dropout, whose masks are not recorded")

    @functools.cached_property
    def terms(self) -> LossTerms:
        """The terms of the bound for the EMA weights."""
        return self._value_and_grad(self.ema_params, self.draws(), self.batch)[0][1]

    @functools.cached_property
    def training(self) -> tuple[jax.Array, LossTerms, Any]:
        """Training loss, its terms and its gradient, for the raw weights."""
        (loss, terms), gradient = self._value_and_grad(self.params, self.draws("train_"), self.batch)
        return loss, terms, gradient

    @functools.cached_property
    def training_kicked(self) -> list[tuple[tuple[jax.Array, LossTerms], Any]]:
        """The same, twice, as `kicked` returns it."""
        return [self.kicked(self.params, "train_", seed) for seed in range(2)]

    @functools.cached_property
    def terms_noise(self) -> LossTerms:
        """[b] nats by which rounding moves each of `terms`."""
        return changes(self.terms, self.kicked(self.ema_params, "", 0)[0][1])

    @functools.cached_property
    def training_noise(self) -> LossTerms:
        """[b] nats by which rounding moves each of the terms in training."""
        return changes(self.training[1], self.training_kicked[0][0][1])

    def independent(self, name: str, size: int) -> int:
        """Numbers that the noise of a leaf's gradient is made of."""
        return size

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Gradient and weights by the peer's names.

        The gradient's noise is measured: weights and noise are changed by one rounding, twice, and the
        larger root-mean-square change of the leaf's gradient is taken.
        """
        gradient = self.by_source(self.training[2])
        kicked = [self.by_source(off[1]) for off in self.training_kicked]
        params, ema_params = self.by_source(self.params), self.by_source(self.ema_params)
        return {
            name: Leaf(
                gradient[name],
                max(float(np.sqrt(np.mean((k[name] - gradient[name]) ** 2))) for k in kicked),
                self.independent(name, gradient[name].size),
                params[name],
                ema_params[name],
            )
            for name in gradient
        }

    def reconstruction_rounding(self, draws: Draws) -> np.ndarray:
        """[b] nats by which the rounding of z_0 / alpha_0, about 1, moves the reconstruction term.

        In units of its standard deviation e^(gamma_0 / 2), about 1/770, that is noise in eps_0,
        independent from dimension to dimension; ours has none: it never forms z_0 / alpha_0.
        """
        slope, rounding = self._reconstruction_slope(draws)
        return rounding * np.sqrt(np.sum(slope**2, axis=(1, 2, 3)))

    def decoder_scale_rounding(self, draws: Draws) -> np.ndarray:
        """[b] nats by which the rounding of alpha_0 moves the term, if z_0 is multiplied by 1 / alpha_0.

        That is f times a rounding, the same in all dimensions.
        """
        slope, rounding = self._reconstruction_slope(draws)
        f = np.asarray(losses.encode(self.batch.x, self.model.num_levels), np.float64)
        return rounding * np.abs(np.sum(slope * f, axis=(1, 2, 3)))

    def _reconstruction_slope(self, draws: Draws) -> tuple[np.ndarray, float]:
        """The term's gradient in eps_0, and two roundings of 1 in the units of eps_0."""
        gamma_0 = self.coefficients([0.0]).gamma
        slope = np.asarray(self._slope(draws.eps_0, gamma_0, self.batch.x), np.float64)
        return slope, 2.0 * ROUNDING * float(jnp.exp(-0.5 * gamma_0).ravel()[0])

    def prior_rounding(self) -> float:
        """Nats by which the rounding of sigma_1^2, about 1, moves the prior term of theirs.

        It enters through 1 - sigma_1^2 (times f^2 < 1) and sigma_1^2 - log sigma_1^2 - 1, which both cancel.
        """
        return 1.5 * self.model.num_dims * ROUNDING

    def kicked(self, params: Any, prefix: str, seed: int) -> tuple[tuple[jax.Array, LossTerms], Any]:
        """Loss, terms and gradient with every weight and number drawn off by one rounding."""
        rng = np.random.default_rng(seed)

        def kick(a):
            return a * (1.0 + 2.0 * ROUNDING * rng.choice([-1.0, 1.0], a.shape)).astype(np.float32)

        # In numpy: jax would compile a product for every shape.
        params, draws = jax.device_get((params, self.draws(prefix)))
        draws = self.kick_draws(draws, kick)
        return self._value_and_grad(jax.tree.map(kick, params), draws, self.batch)

    def kick_draws(self, draws: Draws, kick: Callable) -> Draws:
        """The noise, kicked."""
        return draws._replace(eps=kick(draws.eps), eps_0=kick(draws.eps_0))

    def by_source(self, tree: Any) -> dict[str, np.ndarray]:
        """Leaves of a tree like the model's parameters, un-stacked, by the peer's names, in float64."""
        ours = self.like_source(flatten_dict(jax.device_get(tree), sep="/"))
        return {
            leaf.source: np.asarray(
                ours[leaf.target] if leaf.entry is None else ours[leaf.target][leaf.entry]
            )
            .astype(np.float64)
            .ravel()
            for leaf in self.correspondence(flatten_dict(self.source.params, sep="/"))
        }

    def like_source(self, ours: dict[str, Any]) -> dict[str, Any]:
        """Leaves of a tree like the model's parameters, as the source has them before they are joined."""
        return ours


def kick_times(draws: Draws, kick: Callable) -> Draws:
    """Times off by a rounding of 1."""
    u = np.clip(draws.u + (kick(np.ones_like(draws.u)) - 1.0), 0.0, 1.0)
    return draws._replace(u=jnp.asarray(u, jnp.float32))


def changes(terms: LossTerms, kicked: LossTerms) -> LossTerms:
    """The difference of each, without sign."""
    return jax.tree.map(
        lambda a, b: np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)), terms, kicked
    )


def check_weights(replay: Replay) -> None:
    """Step and weights are the checkpoint's, bit for bit."""
    imported = replay.imported
    assert imported.step == replay.step
    for ours, theirs in (
        (imported.params, replay.source.params),
        (imported.ema_params, replay.source.ema_params),
    ):
        ours, theirs = replay.by_source(ours), flatten_dict(theirs, sep="/")
        assert set(ours) == set(theirs)
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array.ravel(), err_msg=name)


def gradient_tolerance(leaf: Leaf, relative: float) -> float:
    """How far an element of the gradient may be off, root mean square over the leaf.

    Some gradients are exactly 0 in mathematics and noise in numbers: of a bias that a normalisation
    with one channel per group removes, and of an attention key's bias, which softmax removes. Theirs
    was 13 times the noise that one rounding makes in ours, so 30 times is granted there; elsewhere 3
    times, or 10 times where two measurements of a few numbers say little. The rest is relative: the
    weight of the loss, which is common to all elements.
    """
    size = np.sqrt(np.mean(leaf.gradient**2))
    factor = 3.0 if leaf.independent >= 10 else 10.0
    factor = factor if size > 100.0 * leaf.noise else 30.0
    return relative * size + factor * leaf.noise


def check_gradient(replay: Replay, relative: float) -> None:
    """Norm of every leaf's gradient, and its dot products with both sets of weights."""
    names = list(replay.io["train_grad_leaf_names"])
    assert set(names) == set(replay.leaves)
    worst, used = 0.0, 0.0
    for i, name in enumerate(names):
        leaf = replay.leaves[name]
        theirs = replay.io["train_grad_l2"][i]
        tolerance = gradient_tolerance(leaf, relative) * np.sqrt(leaf.gradient.size)
        off = abs(np.linalg.norm(leaf.gradient) - theirs)
        worst = max(worst, off / theirs if tolerance < 1e-3 * theirs else 0.0)
        used = max(used, off / tolerance)
        assert off <= tolerance, name
        for weights, key in ((leaf.params, "params"), (leaf.ema_params, "ema")):
            off = abs(leaf.gradient @ weights - replay.io[f"train_grad_dot_{key}"][i])
            bound = tolerance * np.linalg.norm(weights)  # |(g - g') . p| <= |g - g'| |p|
            used = max(used, off / bound)
            assert off <= bound, f"{name} . {key}"
    note("gradient l2, well-determined leaves", worst)
    note("gradient, part of tolerance", used)


def check_optimizer_step(replay: Replay, relative: float) -> None:
    """AdamW with the released mask: weight decay on every leaf that is not called bias; then the EMA.

    Adam's first update is g / (|g| + 1e-8), the sign of g unless g is tiny. It grows with g, so a
    gradient known to +-d gives an update between those of g - d and g + d; the tolerance of each number
    follows from these intervals. Where |g| < d the sign is anyone's, and the bound is wide.

    Args:
        replay: the case.
        relative: of `gradient_tolerance`.
    """
    rate, eps, ema_rate = 2e-4, 1e-8, 0.9999
    # All of it is elementwise: two long leaves compile sooner than a hundred.
    groups = {"decayed": [], "bias": []}
    for name in replay.leaves:
        groups["bias" if name.endswith("/bias") else "decayed"].append(name)
    is_decayed = {group: group != "bias" for group in groups}
    optimizer = optax.adamw(rate, b1=0.9, b2=0.99, eps=eps, weight_decay=0.01, mask=is_decayed)

    @jit
    def step(params, ema_params, gradient):
        with jax.numpy_dtype_promotion("standard"):  # optax promotes its counter
            updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        new = optax.apply_updates(params, updates)
        new_ema = jax.tree.map(lambda e, p: e + (1.0 - ema_rate) * (p - e), ema_params, new)
        return new, new_ema

    def joined(field):
        parts = {g: [getattr(replay.leaves[name], field) for name in names] for g, names in groups.items()}
        return {g: jnp.asarray(np.concatenate(a), jnp.float32) for g, a in parts.items()}

    def apart(vectors):
        leaves = {}
        for group, names in groups.items():
            ends = np.cumsum([replay.leaves[name].gradient.size for name in names])
            leaves |= zip(names, np.split(np.asarray(vectors[group], np.float64), ends[:-1]), strict=True)
        return leaves

    new, new_ema = (apart(a) for a in step(*(joined(f) for f in ("params", "ema_params", "gradient"))))
    io, used, wide = replay.io, 0.0, 0

    def close(name, ours, theirs, bound):
        nonlocal used
        used = max(used, abs(ours - theirs) / bound)
        assert abs(ours - theirs) <= bound, f"{name}: {ours} {theirs} {bound}"

    names = list(io["train_step_delta_params_leaf_names"])
    with_ema = "train_step_delta_ema_leaf_names" in io
    assert not with_ema or names == list(io["train_step_delta_ema_leaf_names"])
    assert set(names) == set(replay.leaves)
    for i, name in enumerate(names):
        leaf = replay.leaves[name]
        g, p, d = leaf.gradient, leaf.params, gradient_tolerance(leaf, relative)
        adam = [x / (np.abs(x) + eps) for x in (g - d, g, g + d)]
        interval = rate * np.maximum(adam[1] - adam[0], adam[2] - adam[1])
        wide += np.linalg.norm(interval) > 0.1 * rate * np.sqrt(g.size)
        # Old weights are subtracted from new ones: the rounding of both codes' new weights.
        off = interval + 2.0 * ROUNDING * np.abs(p) + 1e-5 * rate
        delta = new[name] - p
        close(name, np.linalg.norm(delta), io["train_step_delta_params_l2"][i], np.linalg.norm(off))
        close(name, delta @ p, io["train_step_delta_params_dot_params"][i], off @ np.abs(p))
        # |delta' . g' - delta . g| <= off . |g'| + d |delta|. Where all of a leaf's gradient is noise, theirs
        # may be many times ours, and |g'| as large as d.
        bound = off @ (np.abs(g) + d) + d * np.sum(np.abs(delta))
        close(name, delta @ g, io["train_step_delta_params_dot_grad"][i], bound)
        if not with_ema:
            continue

        # 1 - 0.9999 is off by 1.7e-5 of itself in float32.
        ema, delta = leaf.ema_params, new_ema[name] - leaf.ema_params
        off = (1.0 - ema_rate) * off + 2.0 * ROUNDING * np.abs(ema) + 2e-5 * np.abs(delta)
        close(name, np.linalg.norm(delta), io["train_step_delta_ema_l2"][i], np.linalg.norm(off))
        close(name, delta @ p, io["train_step_delta_ema_dot_params"][i], off @ np.abs(p))
    note("optimizer step, part of tolerance", used)
    note("optimizer step, part of leaves that are noise", wide / len(names))


def check_levels(ours: dict[str, Any], replay: Replay, z_0: Any) -> None:
    """Decoded levels, however they are found, are the recorded ones."""
    alpha_0 = float(replay.coefficients([0.0]).alpha.ravel()[0])
    # Halfway between two levels either is right; float32 cannot tell within 1e-4 of a level.
    exact = (np.asarray(z_0, np.float64) / alpha_0 + 1.0) * replay.model.num_levels / 2.0 - 0.5
    tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-4
    for name, levels in ours.items():
        differ = np.asarray(levels, np.int64) != replay.io["gen_x"]
        note(f"levels that differ, {name}", int(differ.sum()))
        assert not (differ & ~tie).any()
