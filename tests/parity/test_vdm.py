"""The official VDM code's numbers, replayed: same weights and draws, hence the same outputs.

Both sides compute in float32, in different orders of operations, so each tolerance is a multiple of
float32's rounding (6e-8) times how far the quantity amplifies it. They bound

    |ours - theirs|_max / |theirs|_max

except where said otherwise. What decides is the phase of the Fourier features: 2 pi 2^7 z moves by
800 times the rounding of z, and with it the network's output. Where a quantity is a difference of
near-equal numbers, the tolerance grows by the cancellation, which is computed. `pytest -rP` shows
every deviation.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
import pytest

from jvdm import importers, losses, samplers
from jvdm.importers import flax_checkpoint, vdm
from jvdm.model import Model
from jvdm.records import Batch, Context, Draws, LossTerms
from jvdm.time_samplers import stratify

ROUNDING = 2.0**-24
# Half the time to compile; the tests run each function a few times only.
COMPILER = {"xla_backend_optimization_level": 0}
SAMPLE_STEP = re.compile(r"sample_i(\d+)_eps")


class Leaf(NamedTuple):
    """Measurements of one leaf, in float64."""

    gradient: np.ndarray
    noise: float  # how far rounding moves an element of the gradient, root mean square
    params: np.ndarray
    ema_params: np.ndarray


class Replay:
    """jvdm's model with the weights of one case; everything is computed once."""

    def __init__(self, case: peers.Case):
        self.io = case.io
        self.settings = case.config["model"]
        self.step = case.config["step"]
        self.model: Model = peers.vdm_model(case)
        self.imported = importers.load("vdm", str(case.checkpoint), self.model)
        self.source = flax_checkpoint.read(case.checkpoint)
        self.params = jax.tree.map(jnp.asarray, self.imported.params)
        self.ema_params = jax.tree.map(jnp.asarray, self.imported.ema_params)
        self.batch = Batch(jnp.asarray(self.io["images"]), jnp.asarray(self.io["conditioning"]))
        self.context = Context(self.batch.conditioning)
        self.output = jax.jit(self.model.output, compiler_options=COMPILER)
        self._value_and_grad = jax.jit(
            jax.value_and_grad(self._bits_per_dim, has_aux=True), compiler_options=COMPILER
        )

        self._reconstruction_slope = jax.jit(
            jax.grad(
                lambda eps_0, gamma_0: jnp.sum(
                    losses.reconstruction(self.batch.images, eps_0, gamma_0, self.model.num_levels)
                )
            ),
            compiler_options=COMPILER,
        )

    def _bits_per_dim(self, params: Any, draws: Draws) -> tuple[jax.Array, LossTerms]:
        terms = self.model.terms(params, draws, self.batch)
        return self.to_bits_per_dim(terms.total), terms

    def to_bits_per_dim(self, nats: jax.Array) -> jax.Array:
        return jnp.mean(nats) / (self.model.num_dims * np.log(2.0))

    def draws(self, prefix: str = "") -> Draws:
        """The recorded draws, times by the peer's rule."""
        if self.settings["antithetic_time_sampling"]:
            u = stratify(jnp.asarray(self.io[f"{prefix}t0"]), self.io["images"].shape[0])
        else:
            u = jnp.asarray(self.io[f"{prefix}t_raw"])
        return Draws(u, jnp.asarray(self.io[f"{prefix}eps"]), jnp.asarray(self.io[f"{prefix}eps_0"]))

    def coefficients(self, t: Any) -> Any:
        """Coefficients of the EMA weights' schedule at times [n]."""
        return self.model.coefficients(self.model.time_gamma(self.ema_params, jnp.asarray(t, jnp.float32)))

    @functools.cached_property
    def terms(self) -> LossTerms:
        """The terms of the bound for the EMA weights."""
        return self._value_and_grad(self.ema_params, self.draws())[0][1]

    @functools.cached_property
    def training(self) -> tuple[jax.Array, LossTerms, Any]:
        """Training loss, its terms and its gradient, for the raw weights."""
        (loss, terms), gradient = self._value_and_grad(self.params, self.draws("train_"))
        return loss, terms, gradient

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Gradient and weights by the peer's names.

        The gradient's noise is measured: weights and noise are changed by one rounding, twice, and the
        larger root-mean-square change of the leaf's gradient is taken.
        """
        gradient = self.by_source(self.training[2])
        kicked = [self.by_source(self._kicked_gradient(seed)) for seed in range(2)]
        params, ema_params = self.by_source(self.params), self.by_source(self.ema_params)
        return {
            name: Leaf(
                gradient[name],
                max(float(np.sqrt(np.mean((k[name] - gradient[name]) ** 2))) for k in kicked),
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
        gamma_0 = self.coefficients([0.0]).gamma
        slope = np.asarray(self._reconstruction_slope(draws.eps_0, gamma_0), np.float64)
        rounding = 2.0 * ROUNDING * float(jnp.exp(-0.5 * gamma_0).ravel()[0])
        return rounding * np.sqrt(np.sum(slope**2, axis=(1, 2, 3)))

    def _kicked_gradient(self, seed: int) -> Any:
        rng = np.random.default_rng(seed)

        def kick(a):
            return a * (1.0 + 2.0 * ROUNDING * rng.choice([-1.0, 1.0], a.shape)).astype(np.float32)

        draws = self.draws("train_")
        draws = draws._replace(eps=kick(draws.eps), eps_0=kick(draws.eps_0))
        return self._value_and_grad(jax.tree.map(kick, self.params), draws)[1]

    def by_source(self, tree: Any) -> dict[str, np.ndarray]:
        """Leaves of a tree like the model's parameters, un-stacked, by the peer's names, in float64."""
        ours = flax_checkpoint.flatten(tree)
        return {
            leaf.source: np.asarray(
                ours[leaf.target] if leaf.entry is None else ours[leaf.target][leaf.entry]
            )
            .astype(np.float64)
            .ravel()
            for leaf in vdm.correspondence(flax_checkpoint.flatten(self.source.params))
        }


@pytest.fixture(scope="module", params=peers.cases("vdm"))
def replay(request):
    """One case."""
    with jax.default_matmul_precision("highest"):
        yield Replay(request.param)


def note(quantity: str, figure: float) -> None:
    """Prints a figure, for `pytest -rP`."""
    print(f"{quantity}: {figure:.1e}")


@pytest.fixture
def check():
    """(quantity, ours, theirs, tolerance): asserts the deviation, and prints it."""

    def check(quantity: str, ours: Any, theirs: Any, tolerance: Any) -> None:
        ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs))
        assert ours.shape == theirs.shape
        deviation = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
        note(quantity, deviation)
        assert deviation <= tolerance, f"{quantity} differs by {deviation:.2e} > {tolerance:.2e}"

    return check


def test_step_and_weights_are_the_checkpoints(replay):
    imported = replay.imported
    assert imported.step == replay.step
    for ours, theirs in (
        (imported.params, replay.source.params),
        (imported.ema_params, replay.source.ema_params),
    ):
        ours, theirs = replay.by_source(ours), flax_checkpoint.flatten(theirs)
        assert set(ours) == set(theirs)
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array.ravel(), err_msg=name)


def per_image(a: np.ndarray) -> jax.Array:
    """[b] -> [b, 1, 1, 1], the shape of gamma in a model: one shape, one compilation."""
    return jnp.asarray(a)[:, None, None, None]


# The output sums hundreds of products per layer over some ten layers: a few tens of roundings, most of
# them random. Measured: 4e-7 at 32 channels, 1.6e-6 at 64.
@pytest.mark.parametrize("weights", ["ema_params", "params"])
def test_network_output(replay, check, weights):
    ours = replay.output(
        getattr(replay, weights),
        jnp.asarray(replay.io["score_z"]),
        per_image(replay.io["score_g"]),
        replay.context,
    )
    key = "score_eps_hat" if weights == "ema_params" else "score_eps_hat__params"
    check(f"network output, {weights}", ours, replay.io[key], 1e-5)


def test_schedule(replay, check):
    at = replay.model.time_gamma(replay.ema_params, jnp.asarray(replay.io["gamma_t"]))
    check("gamma", at.gamma.ravel(), replay.io["gamma"], 1e-6)
    check("dgamma_dt", at.dgamma_dt.ravel(), replay.io["dgamma_dt"], 1e-6)


def test_variances_at_the_ends(replay, check):
    variance = replay.coefficients([0.0, 1.0]).sigma.ravel() ** 2
    # d sigma^2 / sigma^2 is d gamma at gamma_0, about -13: its rounding is 13 times as large.
    check("var_0", variance[0], replay.io["var_0"].reshape(()), 1e-5)
    check("var_1", variance[1], replay.io["var_1"].reshape(()), 1e-6)


def test_times_gamma_and_noised_data(replay, check):
    draws = replay.draws()
    t = replay.model.times(draws.u).t
    c = replay.coefficients(t)
    f = losses.encode(replay.batch.images, replay.model.num_levels)
    check("t", t, replay.io["loss_t"], 1e-6)
    check("gamma_t", c.gamma.ravel(), replay.io["loss_g_t"], 1e-6)
    check("z_t", c.alpha * f + c.sigma * draws.eps, replay.io["loss_z_t"], 1e-6)


def test_network_output_inside_the_loss(replay, check):
    ours = replay.output(
        replay.ema_params,
        jnp.asarray(replay.io["loss_z_t"]),
        per_image(replay.io["loss_g_t"]),
        replay.context,
    )
    check("network output in the loss", ours, replay.io["loss_eps_hat"], 1e-5)


def cancellation(replay) -> float:
    """Relative rounding of gamma_t - gamma_s for times 1/T apart; 0 in continuous time.

    gamma and t are rounded in both terms and by both codes: eight roundings.
    """
    steps = replay.model.timesteps
    if not steps:
        return 0.0
    ends = np.abs([replay.settings["gamma_min"], replay.settings["gamma_max"]])
    slope = np.abs(replay.io["dgamma_dt"]).min()
    return float(8.0 * ROUNDING * max(ends.max(), slope) / (slope / steps))


def prior_rounding(replay) -> float:
    """Nats by which the rounding of sigma_1^2, about 1, moves the prior term of theirs.

    It enters through 1 - sigma_1^2 (times f^2 < 1) and sigma_1^2 - log sigma_1^2 - 1, which both cancel.
    """
    return 1.5 * replay.model.num_dims * ROUNDING


def test_weight_of_the_diffusion_loss(replay, check):
    t = replay.model.times(replay.draws().u).t
    at, steps = replay.coefficients(t), replay.model.timesteps
    if steps:
        weight = 0.5 * steps * jnp.expm1(at.gamma - replay.coefficients(t - 1.0 / steps).gamma)
    else:
        weight = 0.5 * at.dgamma_dt
    check("loss weight", weight.ravel(), replay.io["loss_weight"], 1e-6 + cancellation(replay))


def test_loss_terms_of_each_image(replay, check):
    terms, io = replay.terms, replay.io
    recon_rounding = replay.reconstruction_rounding(replay.draws()).max()
    tolerance = 1e-5 + 4.0 * recon_rounding / io["loss_recon"].max()
    check("loss_recon", terms.reconstruction, io["loss_recon"], tolerance)
    check("loss_klz", terms.prior, io["loss_klz"], 1e-6 + prior_rounding(replay) / io["loss_klz"].max())
    # The network's output squared and summed, twice its tolerance.
    check("loss_diff", terms.diffusion, io["loss_diff"], 2e-5 + cancellation(replay))


def skip_dropout(replay):
    if replay.settings["sm_pdrop"]:
        pytest.skip("the case trains with dropout, whose masks are not recorded")


def test_training_loss(replay, check):
    skip_dropout(replay)
    loss, terms, _ = replay.training
    io, bits = replay.io, [replay.to_bits_per_dim(term) for term in terms.parts().values()]
    check("train bpd", loss, io["train_bpd"], 2e-5 + cancellation(replay))
    recon_rounding = replay.reconstruction_rounding(replay.draws("train_"))
    tolerance = 1e-5 + 4.0 * replay.to_bits_per_dim(recon_rounding) / io["train_bpd_recon"]
    check("train bpd, reconstruction", bits[0], io["train_bpd_recon"], tolerance)
    tolerance = 1e-6 + replay.to_bits_per_dim(prior_rounding(replay)) / io["train_bpd_latent"]
    check("train bpd, prior", bits[1], io["train_bpd_latent"], tolerance)
    check("train bpd, diffusion", bits[2], io["train_bpd_diff"], 2e-5 + cancellation(replay))


def gradient_tolerance(replay, leaf: Leaf) -> float:
    """How far an element of the gradient may be off, root mean square over the leaf.

    Some gradients are exactly 0 in mathematics and noise in numbers: of a bias that a normalisation
    with one channel per group removes, and of an attention key's bias, which softmax removes. Theirs
    was 13 times the noise that one rounding makes in ours, so 30 times is granted there; elsewhere 3
    times, or 10 times where two measurements of a few elements say little. The rest is relative: the
    weight of the loss, which is common to all elements.
    """
    size = np.sqrt(np.mean(leaf.gradient**2))
    factor = 3.0 if leaf.gradient.size >= 10 else 10.0
    factor = factor if size > 100.0 * leaf.noise else 30.0
    return (2e-6 + cancellation(replay)) * size + factor * leaf.noise


def test_gradient_of_every_leaf(replay):
    skip_dropout(replay)
    names = list(replay.io["train_grad_leaf_names"])
    assert set(names) == set(replay.leaves)
    relative, used = 0.0, 0.0
    for i, name in enumerate(names):
        leaf = replay.leaves[name]
        theirs = replay.io["train_grad_l2"][i]
        tolerance = gradient_tolerance(replay, leaf) * np.sqrt(leaf.gradient.size)
        off = abs(np.linalg.norm(leaf.gradient) - theirs)
        relative = max(relative, off / theirs if tolerance < 1e-3 * theirs else 0.0)
        used = max(used, off / tolerance)
        assert off <= tolerance, name
        for weights, key in ((leaf.params, "params"), (leaf.ema_params, "ema")):
            off = abs(leaf.gradient @ weights - replay.io[f"train_grad_dot_{key}"][i])
            bound = tolerance * np.linalg.norm(weights)  # |(g - g') . p| <= |g - g'| |p|
            used = max(used, off / bound)
            assert off <= bound, f"{name} . {key}"
    note("gradient l2, well-determined leaves", relative)
    note("gradient, part of tolerance", used)


def test_first_optimizer_step(replay):
    """AdamW with the released mask: weight decay on every leaf that is not called bias; then the EMA.

    Adam's first update is g / (|g| + 1e-8), the sign of g unless g is tiny. It grows with g, so a
    gradient known to +-d gives an update between those of g - d and g + d; the tolerance of each number
    follows from these intervals. Where |g| < d the sign is anyone's, and the bound is wide.
    """
    skip_dropout(replay)
    rate, eps, ema_rate = 2e-4, 1e-8, 0.9999
    is_decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "bias", replay.params)
    optimizer = optax.adamw(rate, b1=0.9, b2=0.99, eps=eps, weight_decay=0.01, mask=is_decayed)

    @functools.partial(jax.jit, compiler_options=COMPILER)
    def step(params, ema_params, gradient):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        new = optax.apply_updates(params, updates)
        new_ema = jax.tree.map(lambda e, p: e + (1.0 - ema_rate) * (p - e), ema_params, new)
        return new, new_ema

    new, new_ema = step(replay.params, replay.ema_params, replay.training[2])
    new, new_ema = replay.by_source(new), replay.by_source(new_ema)
    io, used, wide = replay.io, 0.0, 0

    def close(name, ours, theirs, bound):
        nonlocal used
        used = max(used, abs(ours - theirs) / bound)
        assert abs(ours - theirs) <= bound, f"{name}: {ours} {theirs} {bound}"

    names = list(io["train_step_delta_params_leaf_names"])
    assert names == list(io["train_step_delta_ema_leaf_names"])
    assert set(names) == set(replay.leaves)
    for i, name in enumerate(names):
        leaf = replay.leaves[name]
        g, p, d = leaf.gradient, leaf.params, gradient_tolerance(replay, leaf)
        adam = [x / (np.abs(x) + eps) for x in (g - d, g, g + d)]
        interval = rate * np.maximum(adam[1] - adam[0], adam[2] - adam[1])
        wide += np.linalg.norm(interval) > 0.1 * rate * np.sqrt(g.size)
        # Old weights are subtracted from new ones: the rounding of both codes' new weights.
        off = interval + 2.0 * ROUNDING * np.abs(p) + 1e-5 * rate
        delta = new[name] - p
        close(name, np.linalg.norm(delta), io["train_step_delta_params_l2"][i], np.linalg.norm(off))
        close(name, delta @ p, io["train_step_delta_params_dot_params"][i], off @ np.abs(p))
        bound = off @ np.abs(g) + d * np.sum(np.abs(delta))
        close(name, delta @ g, io["train_step_delta_params_dot_grad"][i], bound)

        # 1 - 0.9999 is off by 1.7e-5 of itself in float32.
        ema, delta = leaf.ema_params, new_ema[name] - leaf.ema_params
        off = (1.0 - ema_rate) * off + 2.0 * ROUNDING * np.abs(ema) + 2e-5 * np.abs(delta)
        close(name, np.linalg.norm(delta), io["train_step_delta_ema_l2"][i], np.linalg.norm(off))
        close(name, delta @ p, io["train_step_delta_ema_dot_params"][i], off @ np.abs(p))
    note("optimizer step, part of tolerance", used)
    note("optimizer step, part of leaves that are noise", wide / len(names))


def test_ancestral_steps(replay, check):
    """Theirs takes sigma_s^2 = 1 - s(-gamma_s), which near s = 0 is 1e-6 with a rounding of 1e-7."""
    steps = int(replay.io["sample_T"])
    indices = [int(m[1]) for key in replay.io if (m := SAMPLE_STEP.fullmatch(key))]
    assert indices
    sampler = samplers.Ancestral(clip=False)
    z_t = jnp.asarray(replay.io["sample_z_t"])
    for i in indices:
        t, s = (jnp.full(z_t.shape[0], (steps - i - j) / steps, jnp.float32) for j in (0, 1))
        at_s = replay.coefficients(s)
        at_t = replay.coefficients(t)
        out = replay.output(replay.ema_params, z_t, at_t.gamma, replay.context)
        eps_hat = replay.model.parameterization(at_t).to_eps(out, z_t)
        noise, theirs = (replay.io[f"sample_i{i}_{key}"] for key in ("eps", "z_s"))
        z_s = sampler.step(eps_hat, z_t, jnp.asarray(noise), at_t, at_s)
        # The scale of the noise is at most sigma_s; d sigma_s = d sigma_s^2 / (2 sigma_s).
        rounding = 2.0 * ROUNDING / (2.0 * float(at_s.sigma.min())) * np.abs(noise).max()
        check(f"ancestral step {i}", z_s, theirs, 1e-6 + rounding / np.abs(theirs).max())


def test_decoded_levels(replay):
    c = replay.coefficients([0.0])
    z_0, levels = replay.io["gen_z_0"], replay.model.num_levels
    nearest = samplers.most_likely_levels(jnp.asarray(z_0), c.alpha, levels)
    logits = losses.decoder_logits(jnp.asarray(z_0), c.alpha, c.gamma, levels)
    # Halfway between two levels either is right; float32 cannot tell within 1e-4 of a level.
    exact = (z_0.astype(np.float64) / float(c.alpha.ravel()[0]) + 1.0) * levels / 2.0 - 0.5
    tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-4
    for name, ours in (("nearest", nearest), ("argmax", jnp.argmax(logits, axis=-1))):
        differ = np.asarray(ours, np.int64) != replay.io["gen_x"]
        note(f"levels that differ, {name}", int(differ.sum()))
        assert not (differ & ~tie).any()
