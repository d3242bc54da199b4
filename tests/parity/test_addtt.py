"""The numbers of addtt's PyTorch code of VDM, replayed: same weights and draws, hence the same outputs.

Both sides compute in float32, in different orders of operations. How far that moves the network's output is
recorded, as the peer's own distance from float64 (`noise_floor` in `config.json`); two codes that round
independently differ by more in the worst of all pixels, so three floors are granted. The tolerances of what
is made of the output follow from it. The rest is a multiple of float32's rounding (6e-8) times how far the
quantity amplifies it. All bound

    |ours - theirs|_max / |theirs|_max

except where said otherwise. `pytest -rP` shows every deviation.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers import peers
from helpers.compose import compose
from helpers.replays import ROUNDING, Leaf, gradient_tolerance, jit, note, per_image

from jvdm import importers
from jvdm.core.records import Batch, Context, Draws
from jvdm.core.shapes import lead
from jvdm.diffusion import losses, samplers, transforms
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.parameterizations import Noise
from jvdm.diffusion.paths import VariancePreserving
from jvdm.diffusion.schedules import FixedLinear, LearnedScalar
from jvdm.diffusion.times import stratify
from jvdm.importers import addtt, torch_archive
from jvdm.model import Model, objectives
from jvdm.networks import GammaInput, layers
from jvdm.networks.unet import ResidualBlock, VDMUNet

SCHEDULES = {"fixed_linear": FixedLinear, "learned_linear": LearnedScalar}
# Of the embedding of a time: phases of up to 1000 are rounded to 6e-5 of a radian, and so are their
# frequencies, by both codes.
PHASES = 2.5e-4
SETS = {"fwd": "params", "ema": "ema_params"}


def model_of(case: peers.Case) -> Model:
    """The model that the settings of a case stand for."""
    settings = case.config["TrainConfig"]
    ends = {key: settings[key] for key in ("gamma_min", "gamma_max")}
    return compose(
        network=VDMUNet(
            channels=settings["embedding_dim"],
            num_blocks=settings["n_blocks"],
            dropout=settings["dropout_prob"],
            attention=settings["attention_everywhere"],
            num_heads=settings["n_attention_heads"],
            fourier=settings["use_fourier_features"],
            fourier_first=5,
            fourier_last=6,
            num_groups=settings["norm_groups"],
            norm_epsilon=1e-5,
        ),
        time_input=GammaInput(**ends),
        schedule=SCHEDULES[settings["noise_schedule"]](**ends),
        path=VariancePreserving(),
        parameterization=Noise(),
        data_shape=case.io["images_u8_nhwc"].shape[1:],
        num_levels=256,
        prior="standard",
    )


def nhwc(a: Any) -> Any:
    """Images, channels last."""
    return jnp.asarray(np.moveaxis(a, -3, -1))


def nchw(a: Any) -> np.ndarray:
    """Images as they are recorded."""
    return np.moveaxis(np.asarray(a), -1, -3)


def kicks(seed: int) -> Callable:
    """Puts every number of an array off by one rounding, up or down."""
    rng = np.random.default_rng(seed)

    def kick(a):
        return a * (1.0 + 2.0 * ROUNDING * rng.choice([-1.0, 1.0], a.shape)).astype(np.float32)

    return kick


class Replay:
    """jvdm's model with the weights of one case; everything is computed once."""

    def __init__(self, case: peers.Case):
        self.path = case.path
        self.io = case.io
        self.config = case.config
        self.settings = case.config["TrainConfig"]
        self.model = model_of(case)
        self.imported = importers.load("addtt", str(case.path), self.model)
        self.saved = torch_archive.read(case.path / "model.pt")
        self.params = jax.tree.map(jnp.asarray, self.imported.params)
        self.ema_params = jax.tree.map(jnp.asarray, self.imported.ema_params)
        images = self.io["images_u8_nhwc"]
        self.batch = Batch(jnp.asarray(images))
        self.output = jit(lambda p, z, gamma: self.model.output(p, z, gamma, Context()))
        self.time_gamma = jit(self.model.time_gamma)
        # Of the output of the network, absolute.
        floors = [value for key, value in self.config.items() if key.startswith("noise_floor")]
        self.noise = 3.0 * max(floors)

        # The images are an argument, so that cases of one model share one compiled program.
        def bits_per_dim(params, draws, batch):
            terms = objectives.bound(self.model, params, draws, batch)
            return jnp.mean(self.to_bits(terms.total)), terms

        self.value_and_grad = jit(jax.value_and_grad(bits_per_dim, has_aux=True))

    def to_bits(self, nats: Any) -> Any:
        """bits/dim."""
        return nats / (self.model.num_dims * np.log(2.0))

    @property
    def draws(self) -> Draws:
        """The recorded ones; the times in full precision."""
        eps, eps_0 = (nhwc(self.io[f"fwd/{key}"]) for key in ("noise", "recon_noise"))
        return Draws(jnp.asarray(self.io["fwd/times"]), eps, eps_0)

    def coefficients(self, t: Any, params: str = "params") -> Any:
        """At times [n]."""
        at = self.time_gamma(getattr(self, params), jnp.asarray(t, jnp.float32).reshape(-1))
        return coefficients(self.model.path, *at)

    @functools.cached_property
    def evaluated(self) -> dict[str, Any]:
        """Loss, terms and gradient for both sets of weights."""
        return {
            name: self.value_and_grad(getattr(self, params), self.draws, self.batch)
            for name, params in SETS.items()
        }

    @functools.cached_property
    def gradients(self) -> list[dict[str, np.ndarray]]:
        """By the peer's names, for the raw weights; and twice with every number off by one rounding."""
        gradients = [self.evaluated["fwd"][1]]
        for seed in range(2):
            kick = kicks(seed)
            draws = self.draws._replace(eps=kick(self.draws.eps), eps_0=kick(self.draws.eps_0))
            gradients.append(self.value_and_grad(jax.tree.map(kick, self.params), draws, self.batch)[1])
        return [self.by_source(gradient) for gradient in gradients]

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Gradient and weights by the peer's names, in its order of elements."""
        gradient, *kicked = self.gradients
        params, ema_params = self.by_source(self.params), self.by_source(self.ema_params)

        def noise(name):
            return max(float(np.sqrt(np.mean((k[name] - gradient[name]) ** 2))) for k in kicked)

        return {
            name: Leaf(g, noise(name), g.size, params[name], ema_params[name]) for name, g in gradient.items()
        }

    def by_source(self, tree: Any) -> dict[str, np.ndarray]:
        """Leaves of a tree like the model's parameters by the peer's names, flat, in float64."""
        ours = flatten_dict(tree, sep="/")
        elements = np.full(self.places["total"], np.nan)
        for path, numbers in flatten_dict(self.places["numbers"], sep="/").items():
            elements[numbers[numbers > 0] - 1] = np.asarray(ours[path], np.float64)[numbers > 0]
        assert np.isfinite(elements).all()
        sizes = [a.size for a in self.saved["model"].values()]
        return dict(zip(self.saved["model"], np.split(elements, np.cumsum(sizes)[:-1]), strict=True))

    @functools.cached_property
    def places(self) -> dict[str, Any]:
        """Where the elements of the source go: its elements, numbered from 1, are imported."""
        numbered, total = {}, 0
        for name, a in self.saved["model"].items():
            numbered[name] = np.arange(total + 1, total + a.size + 1).reshape(a.shape)
            total += a.size
        # In two parts, which are float32 on the way.
        high, low = (
            addtt.convert({name: np.asarray(part(a), np.float32) for name, a in numbered.items()})
            for part in (lambda a: a >> 20, lambda a: a & (2**20 - 1))
        )
        numbers = jax.tree.map(lambda a, b: (a.astype(np.int64) << 20) + b.astype(np.int64), high, low)
        return {"numbers": numbers, "total": total}


@pytest.fixture(scope="module", params=peers.cases("addtt"))
def replay(request):
    """One case."""
    with jax.default_matmul_precision("highest"):
        yield Replay(request.param)


@pytest.fixture(params=SETS)
def of(request):
    """The prefix of keys of one set of weights."""
    return request.param


def test_step_and_weights_are_the_checkpoints(replay):
    assert replay.imported.step == replay.config["checkpoint_step"]
    assert set(replay.saved["model"]) == set(replay.config["param_names_in_order"])
    ema = replay.saved["ema"]
    for name, array in replay.by_source(replay.params).items():
        np.testing.assert_array_equal(array, replay.saved["model"][name].ravel(), err_msg=name)
    for name, array in replay.by_source(replay.ema_params).items():
        np.testing.assert_array_equal(array, ema[f"ema_model.{name}"].ravel(), err_msg=name)
    written = addtt.settings(replay.path / "config.yaml")
    assert set(written) == set(replay.settings)
    for key, value in replay.settings.items():
        text = written[key]
        assert float(text) == value if type(value) in (int, float) else text.lower() == str(value).lower()


def test_schedule(replay, check, of):
    io, params = replay.io, SETS[of]
    at = replay.coefficients(io["fwd/times"], params)
    ends = replay.coefficients([0.0, 1.0], params)
    check(f"gamma_t, {of}", at.gamma.ravel(), io[f"{of}/gamma_t"], 1e-6)
    check(f"gamma_grad, {of}", at.dgamma_dt.ravel(), io[f"{of}/gamma_grad"], 1e-6)
    check(f"gamma_0, {of}", ends.gamma.ravel()[0], io[f"{of}/gamma_0"].reshape(()), 1e-6)
    check(f"gamma_1, {of}", ends.gamma.ravel()[1], io[f"{of}/gamma_1"].reshape(()), 1e-6)


def test_tables(replay, check):
    io = replay.io
    check("gamma(t)", replay.coefficients(io["tab/t"]).gamma.ravel(), io["tab/gamma"], 1e-6)
    embedding = layers.timestep_embedding(jnp.asarray(io["tab/t"]), replay.settings["embedding_dim"])
    check("embedding of t", embedding, io["tab/timestep_embedding_of_t"], PHASES)


def test_fourier_features(replay, check):
    """Theirs are exponent by exponent, ours channel by channel."""
    if "tab/fourier_in" not in replay.io:
        pytest.skip("the case has no Fourier features")
    z = replay.io["tab/fourier_in"]
    network = replay.model.network
    ours = nchw(layers.fourier_features(nhwc(z), network.fourier_first, network.fourier_last))
    b, c, *sides = z.shape
    ours = ours.reshape(b, 2, c, -1, *sides).swapaxes(2, 3).reshape(replay.io["tab/fourier_out"].shape)
    # Phases 2 pi 2^6 z, rounded in both codes.
    phase = 2.0 * math.pi * 2.0**network.fourier_last * np.abs(z).max()
    check("Fourier features", ours, replay.io["tab/fourier_out"], 4.0 * ROUNDING * phase)


def test_times(replay, check):
    """Those of both rules are ours; stratified ones not rotated are a special case of rotated ones."""
    sizes = [int(m[1]) for key in replay.io if (m := re.fullmatch(r"times/B(\d+)_draw", key))]
    assert sizes
    draws = {f"times/B{n}": (f"times/B{n}_draw", f"times/B{n}_times", n) for n in sizes}
    draws["fwd"] = ("fwd/draw_time", "fwd/times", len(replay.io["fwd/times"]))
    for name, (draw, times, n) in draws.items():
        u = jnp.asarray(replay.io[draw])
        if replay.settings["antithetic_time_sampling"]:
            u = stratify(u, n)
        # The loss's own times were recorded after a multiplication by 1000.
        ours = np.asarray(replay.model.times(u).t, np.float64)
        assert ours.shape == replay.io[times].shape
        off = np.max(np.abs(ours - replay.io[times]))
        note(f"{name}, absolute", off)
        assert off <= (1e-4 if name == "fwd" else 2e-7)


def test_noised_data(replay, check, of):
    io = replay.io
    encoded = transforms.encode(replay.batch.x, 256, replay.model.data_map)
    check("x", nchw(encoded), io["fwd/x_scaled"], 1e-6)
    check("x of u8 / 255", np.round(io["x01_nchw"] * 255.0), nchw(replay.batch.x), 1e-6)
    c = replay.coefficients(io["fwd/times"], SETS[of])
    check(f"x_t, {of}", nchw(c.alpha * encoded + c.sigma * replay.draws.eps), io[f"{of}/x_t"], 1e-6)


def test_network_output(replay, check, of):
    theirs = replay.io[f"{of}/unet_out"]
    gamma = per_image(replay.io[f"{of}/gamma_t"])
    ours = replay.output(getattr(replay, SETS[of]), nhwc(replay.io[f"{of}/x_t"]), gamma)
    check(f"network output, {of}", nchw(ours), theirs, replay.noise / np.abs(theirs).max())


def test_inside_the_network(replay, check):
    io, network = replay.io, replay.model.network
    time = replay.model.time_input(None, jnp.asarray(io["fwd/gamma_t"]))
    params, z = replay.params["network"], nhwc(io["fwd/x_t"])
    run = jit(functools.partial(unrolled, network))
    found = run(params, z, time)
    of_output = replay.noise / np.abs(io["fwd/unet_out"]).max()
    check("output", nchw(z + found["conv_out"]), io["fwd/unet_out"], of_output)
    # A case has whatever its author has recorded of these.
    if "int/t_times_1000" in io:
        check("1000 time", 1000.0 * time, io["int/t_times_1000"], 1e-6)
    if "int/t_embedding" in io:
        embedding = layers.timestep_embedding(time, network.channels)
        check("embedding", embedding, io["int/t_embedding"], PHASES)
    if "int/cond" in io:
        check("condition", found["condition"], io["int/cond"], PHASES)
    recorded = {m[1]: key for key in io if (m := re.fullmatch(r"int/img0_stride4/(.*)", key))}
    # How far one rounding of every number moves a value, which grows with depth and width; theirs is another.
    kicked = [run(jax.tree.map(kick, params), kick(z), time) for kick in map(kicks, range(2))]
    for name, key in recorded.items():
        moved = max(np.abs(each[name] - found[name]).max() for each in kicked) / np.abs(found[name]).max()
        check(name, nchw(found[name])[0, :, ::4, ::4], io[key], max(2.0 * of_output, 4.0 * float(moved)))


def unrolled(network, params, z, time):
    """Outputs inside the network, whose blocks are applied one after another, by the peer's names."""
    block = ResidualBlock(network.channels, network.groups, 0.0, jnp.float32, network.norm_epsilon)
    attention = layers.SelfAttention(network.groups, network.norm_epsilon, num_heads=network.num_heads)

    def dense(p, h):
        return h @ p["kernel"] + lead(p["bias"], h.ndim)

    def residual(p, h):
        return block.apply({"params": p}, h, condition[:, None, None, :])

    def attend(p, h):
        return attention.apply({"params": p}, h)

    def stacked(way, i, h):
        p = jax.tree.map(lambda a: a[i], params[way])
        h = residual(p["block"], h)
        return attend(p["attention"], h) if network.attention else h

    condition = layers.timestep_embedding(time, network.channels)
    condition = jnp.concatenate([condition, jnp.zeros((len(z), 1))], axis=-1)
    condition = jax.nn.swish(dense(params["condition1"], condition))
    condition = jax.nn.swish(dense(params["condition2"], condition))
    h = z
    if network.fourier:
        features = layers.fourier_features(z, network.fourier_first, network.fourier_last)
        h = jnp.concatenate([z, features], axis=-1)
    h = layers.Conv3x3(network.channels).apply({"params": params["conv_in"]}, h)
    found, kept = {"condition": condition, "conv_in": h}, [h]
    for i in range(network.num_blocks):
        h = found[f"down_blocks.{i}"] = stacked("down", i, h)
        kept.append(h)
    h = found["mid_resnet_block_1"] = residual(params["middle1"], h)
    h = found["mid_attn_block"] = attend(params["middle_attention"], h)
    h = found["mid_resnet_block_2"] = residual(params["middle2"], h)
    for i in range(network.num_blocks + 1):
        h = jnp.concatenate([h, kept.pop()], axis=-1)
        h = found[f"up_blocks.{i}"] = stacked("up", i, h)
    norm = layers.GroupNorm(network.groups, network.norm_epsilon)
    h = jax.nn.swish(norm.apply({"params": params["norm_out"]}, h))
    found["conv_out"] = layers.Conv3x3(z.shape[-1]).apply({"params": params["conv_out"]}, h)
    return found


def test_loss_terms_of_each_image(replay, check, of):
    io, size = replay.io, replay.model.num_dims
    (loss, terms), _ = replay.evaluated[of]
    gamma_grad, pred_loss = io[f"{of}/gamma_grad"], io[f"{of}/pred_loss"]
    # |e|^2 moves by 2 |e| |noise| at most, here for a noise of one floor at every pixel.
    of_diffusion = 1e-6 + 2.0 * replay.noise / 3.0 * math.sqrt(size) / math.sqrt(pred_loss.max())
    check(f"pred_loss, {of}", terms.diffusion / (0.5 * gamma_grad), pred_loss, of_diffusion)
    bits = {name: np.asarray(replay.to_bits(term)) for name, term in terms.parts().items()}
    theirs = {name: io[f"{of}/{name}_loss_bpd"] for name in ("diffusion", "latent", "recons")}
    # sigma_1^2 and 1 - sigma_1^2 are rounded in theirs, and nearly cancel.
    of_prior = 1e-5 + replay.to_bits(1.5 * size * ROUNDING) / theirs["latent"].max()
    # z_0 / alpha_0, about 1, is rounded in theirs, in units of e^(gamma_0 / 2).
    gamma_0 = float(io[f"{of}/gamma_0"].item())
    off = 2.0 * ROUNDING * math.exp(-0.5 * gamma_0) * math.sqrt(size)
    of_decoder = 1e-5 + 8.0 * replay.to_bits(off) / theirs["recons"].max()
    check(f"diffusion, {of}", bits["diffusion"], theirs["diffusion"], of_diffusion)
    check(f"prior, {of}", bits["prior"], theirs["latent"], of_prior)
    check(f"reconstruction, {of}", bits["reconstruction"], theirs["recons"], of_decoder)
    tolerance = max(of_diffusion, of_prior, of_decoder)
    check(f"bits/dim, {of}", replay.to_bits(terms.total), io[f"{of}/loss_bpd"], tolerance)
    means = [loss, *(bits[name].mean() for name in ("diffusion", "prior", "reconstruction"))]
    check(f"means, {of}", means, io[f"{of}/metrics_bpd_diff_latent_recon"], tolerance)


def relative(replay) -> float:
    """Of gradients: the output's noise, as the output is what a gradient is a multiple of."""
    return 4.0 * replay.noise / np.abs(replay.io["fwd/unet_out"]).max()


def test_gradient_of_every_parameter(replay, check):
    io, names = replay.io, replay.config["param_names_in_order"]
    worst, used = 0.0, 0.0
    for name, theirs in zip(names, io["train/grad_l2"], strict=True):
        leaf = replay.leaves[name]
        tolerance = gradient_tolerance(leaf, relative(replay)) * math.sqrt(leaf.gradient.size)
        off = abs(np.linalg.norm(leaf.gradient) - theirs)
        worst = max(worst, off / theirs if tolerance < 1e-2 * theirs else 0.0)
        used = max(used, off / tolerance)
        assert off <= tolerance, name
    note("gradient l2, well-determined parameters", worst)
    note("gradient l2, part of tolerance", used)
    total = math.sqrt(sum(np.sum(leaf.gradient**2) for leaf in replay.leaves.values()))
    if replay.settings["clip_grad_norm"]:
        check("gradient l2, all", total, io["train/grad_total_norm_before_clip"], relative(replay))


def test_elements_of_the_gradient(replay, check):
    io = replay.io

    def compare(key, names, theirs):
        ours, *kicked = (
            np.concatenate([g[name].ravel() for name in names])[: theirs.size] for g in replay.gradients
        )
        noise = max(np.abs(k - ours).max() for k in kicked) / np.abs(ours).max()
        check(f"gradient of {key}", ours, theirs.ravel(), 2.0 * relative(replay) + 4.0 * noise)

    compare("conv_out", ["model.conv_out.2.weight"], io["train/grad_conv_out_weight"])
    compare("conv_in", ["model.conv_in.weight"], io["train/grad_conv_in_weight"])
    # The first row of the kernel.
    compare("the embedding", ["model.embed_conditioning.0.weight"], io["train/grad_embed0_weight_row0"])
    if "gamma.b" in replay.saved["model"]:
        compare("the schedule", ["gamma.b", "gamma.w"], io["train/grad_gamma_b_w"])


def test_conditioning_has_no_gradient(replay):
    """The row that the importer adds stays as it is: the conditioning is 0."""
    kernel = replay.evaluated["fwd"][1]["network"]["condition1"]["kernel"]
    np.testing.assert_array_equal(kernel[-1], 0.0)
    np.testing.assert_array_equal(replay.imported.params["network"]["condition1"]["kernel"][-1], 0.0)


class Step:
    """One step of AdamW from the checkpoint's state, in the peer's order of elements.

    Args:
        replay: the case.
    """

    def __init__(self, replay: Replay):
        saved, names = replay.saved["opt"], replay.config["param_names_in_order"]
        (self.group,) = saved["param_groups"]
        assert self.group["params"] == list(range(len(names)))
        self.params = {name: replay.saved["model"][name].ravel() for name in names}
        self.gradient = {name: replay.leaves[name].gradient for name in names}
        total = math.sqrt(sum(np.sum(g**2) for g in self.gradient.values()))
        self.clip = min(1.0, 1.0 / (total + 1e-6)) if replay.settings["clip_grad_norm"] else 1.0
        zeros = {"step": np.zeros(()), "exp_avg": np.zeros(()), "exp_avg_sq": np.zeros(())}
        state = [saved["state"].get(i, zeros) for i in range(len(names))]
        self.count = int(state[0]["step"])
        assert {int(s["step"]) for s in state} == {self.count}
        self.mu, self.nu = (
            {n: s[key].ravel() + np.zeros_like(self.params[n]) for n, s in zip(names, state, strict=True)}
            for key in ("exp_avg", "exp_avg_sq")
        )

    @functools.cached_property
    def after(self) -> dict[str, np.ndarray]:
        """Parameters after the step."""
        group = self.group
        optimizer = optax.adamw(
            group["lr"], *group["betas"], eps=group["eps"], weight_decay=group["weight_decay"]
        )

        @jit
        def update(params, gradient, mu, nu):
            state = optimizer.init(params)
            state = optax.tree_utils.tree_set(state, count=jnp.int32(self.count), mu=mu, nu=nu)
            with jax.numpy_dtype_promotion("standard"):  # optax promotes its counter
                updates, _ = optimizer.update(gradient * self.clip, state, params)
            return optax.apply_updates(params, updates)

        trees = (self.params, self.gradient, self.mu, self.nu)
        flat = (np.concatenate(list(tree.values())).astype(np.float32) for tree in trees)
        ends = np.cumsum([a.size for a in self.params.values()])[:-1]
        return dict(zip(self.params, np.split(np.asarray(update(*flat)), ends), strict=True))

    def uncertainty(self, name: str, off: float) -> np.ndarray:
        """How far each element of the update may be off if the gradient is off by `off`.

        The update is neither linear in the gradient nor monotone, so it is evaluated in between.
        """
        group, (b1, b2), n = self.group, self.group["betas"], self.count + 1

        def update(g):
            mean = (b1 * self.mu[name] + (1.0 - b1) * g) / (1.0 - b1**n)
            square = (b2 * self.nu[name] + (1.0 - b2) * g**2) / (1.0 - b2**n)
            return group["lr"] * mean / (np.sqrt(square) + group["eps"])

        g = self.gradient[name] * self.clip
        around = [update(g + self.clip * off * part) for part in np.linspace(-1.0, 1.0, 11)]
        changed = np.max(np.abs(np.stack(around) - update(g)), axis=0)
        # New parameters are rounded by both codes, and so is the update.
        return changed + 2.0 * ROUNDING * np.abs(self.params[name]) + 1e-5 * group["lr"]


@pytest.fixture(scope="module")
def step(replay):
    """The optimizer's step of a case."""
    return Step(replay)


def test_optimizer_step(replay, step):
    names, used = replay.config["param_names_in_order"], 0.0
    for name, theirs in zip(names, replay.io["train/update_l2"], strict=True):
        off = step.uncertainty(name, gradient_tolerance(replay.leaves[name], relative(replay)))
        ours = np.linalg.norm(step.after[name].astype(np.float64) - step.params[name])
        used = max(used, abs(ours - theirs) / np.linalg.norm(off))
        assert abs(ours - theirs) <= np.linalg.norm(off), name
    note("update l2, part of tolerance", used)


def test_parameters_and_average_after_the_step(replay, step):
    """The average moves by 1 - decay of the way to the new parameters."""
    io, ema = replay.io, replay.saved["ema"]
    decay = float(io["train/ema_decay_used"])
    assert int(io["train/ema_step_after"]) == int(ema["step"].item()) + 1
    cases = [("model.conv_out.2.weight", io["train/conv_out_weight_after"].ravel())]
    if "gamma.b" in replay.saved["model"]:
        cases += zip(("gamma.b", "gamma.w"), np.split(io["train/gamma_b_w_after"], 2), strict=True)
    for name, theirs in cases:
        # Of single elements of the gradient, not their root mean square.
        off = step.uncertainty(name, 5.0 * gradient_tolerance(replay.leaves[name], relative(replay)))
        ours = step.after[name].astype(np.float64)
        note(f"{name} after the step, part of tolerance", np.max(np.abs(ours - theirs) / off))
        assert np.all(np.abs(ours - theirs) <= off)
        if name.startswith("model"):
            before = ema[f"ema_model.{name}"].ravel().astype(np.float64)
            moved = before + (1.0 - decay) * (ours - before)
            theirs = io["train/ema_conv_out_weight_after"].ravel()
            # The decay is recorded in float32.
            off = (1.0 - decay) * off + 4.0 * ROUNDING * (np.abs(before) + np.abs(ours - before))
            note("average after the step, part of tolerance", np.max(np.abs(moved - theirs) / off))
            assert np.all(np.abs(moved - theirs) <= off)


def step_to(replay, at_s):
    """A step of the sampler, whose length the ancestral one does not need."""
    model = replay.model
    return samplers.Step(model.process, replay.params, at_s, 0.0, model.data_map.range, Context())


def test_ancestral_steps(replay, check):
    io, rounding = replay.io, 4.0 * ROUNDING
    steps = sorted({m[1] for key in io if (m := re.match(r"(step\d+)/", key))})
    assert steps
    z_t = nhwc(io["step/z_t"])
    for name in steps:
        t, s = (np.full(len(z_t), time) for time in io[f"{name}/t_s"])
        at_t, at_s = replay.coefficients(t), replay.coefficients(s)
        gammas = [at_t.gamma.ravel()[0], at_s.gamma.ravel()[0]]
        check(f"{name}, gamma", gammas, io[f"{name}/gamma_t_s"], 1e-6)
        c = -jnp.expm1(at_s.gamma - at_t.gamma)
        ours = [c.ravel()[0], (at_s.sigma * jnp.sqrt(c)).ravel()[0]]
        # Relative rounding of gamma_t - gamma_s.
        cancellation = rounding * np.abs(gammas).max() / abs(gammas[0] - gammas[1])
        for part, theirs in zip(ours, io[f"{name}/c_scale"], strict=True):
            check(f"{name}, c and scale", part, theirs, 1e-6 + cancellation)
        eps_hat = replay.output(replay.params, z_t, at_t.gamma)
        theirs = io[f"{name}/pred_noise"]
        check(f"{name}, noise", nchw(eps_hat), theirs, replay.noise / np.abs(theirs).max())
        prediction = replay.model.parameterization(at_t).predict(eps_hat, z_t, at_t)
        x_hat = replay.model.process.denoised(z_t, prediction)
        clipped = float(jnp.mean(jnp.abs(x_hat) > 1.0))
        # Those within the noise of 1 may be on either side.
        near = float(
            jnp.mean(jnp.abs(jnp.abs(x_hat) - 1.0) < at_t.sigma / at_t.alpha * replay.noise + rounding)
        )
        note(f"{name}, part clipped, absolute", abs(clipped - io[f"{name}/frac_x_start_clipped"]))
        assert abs(clipped - io[f"{name}/frac_x_start_clipped"]) <= near + 1e-7
        ratio = float(jnp.max(at_s.alpha / at_t.alpha))
        off = ratio * float(jnp.max(c * at_t.sigma)) * (replay.noise + cancellation * np.abs(theirs).max())
        for clip, key in ((False, "z_s_noclip"), (True, "z_s_clip")):
            sampler = samplers.Ancestral(clip=clip)
            z_s = sampler.step(prediction, z_t, nhwc(io[f"{name}/noise"]), step_to(replay, at_s))
            largest = np.abs(io[f"{name}/{key}"]).max()
            check(f"{name}, {key}", nchw(z_s), io[f"{name}/{key}"], 1e-6 + off / largest)


def test_samples(replay, check):
    """A step amplifies what the one before was off, so that is measured: outputs are off by their noise."""
    io = replay.io
    noises = [nhwc(noise) for noise in io["sample3/noises"]]
    num_steps, rng = len(noises), np.random.default_rng(0)

    def sample(noise):
        z = nhwc(io["sample3/z_1"])
        for i, eps in enumerate(noises):
            at_t, at_s = (
                replay.coefficients(np.full(len(z), (num_steps - i - j) / num_steps)) for j in (0, 1)
            )
            eps_hat = replay.output(replay.params, z, at_t.gamma)
            eps_hat = eps_hat + noise * rng.choice([-1.0, 1.0], z.shape).astype(np.float32)
            prediction = replay.model.parameterization(at_t).predict(eps_hat, z, at_t)
            z = samplers.Ancestral(clip=True).step(prediction, z, eps, step_to(replay, at_s))
        return np.asarray(z, np.float64)

    z_0, theirs = sample(0.0), np.moveaxis(io["sample3/z_0"], 1, -1)
    # The floor is of the worst of ten thousand pixels, four standard deviations.
    moved = max(np.abs(sample(replay.noise / 12.0) - z_0).max() for _ in range(2))
    note("z_0 if outputs are off, absolute", moved)
    check("z_0", z_0, theirs, 1e-6 + 5.0 * moved / np.abs(theirs).max())
    check_decoded(replay, io["sample3/z_0"], io["sample3/x_int"])


def check_decoded(replay, z_0, levels):
    """Levels of the decoder from their z_0; halfway between two levels either is right."""
    alpha_0 = replay.coefficients([0.0]).alpha
    y = nhwc(z_0) / alpha_0
    ours = nchw(transforms.nearest_level(y, 256, replay.model.data_map)).astype(np.int64)
    exact = (np.asarray(z_0, np.float64) / float(alpha_0.ravel()[0]) + 1.0) * 128.0 - 0.5
    tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-4
    note("levels that differ", int((ours != levels).sum()))
    assert not ((ours != levels) & ~tie).any()


def test_decoder(replay):
    io, c = replay.io, replay.coefficients([0.0])
    check_decoded(replay, io["dec/z_0"], io["dec/argmax"])
    logits = losses.decoder_logits(nhwc(io["dec/z_0"]), c.alpha, c.gamma, 256)
    ours = np.moveaxis(np.asarray(jax.nn.log_softmax(logits)), 3, 1)[:, :, ::2, ::2].astype(np.float64)
    theirs = io["dec/log_probs_of_z_0_stride2"].astype(np.float64)
    # The logit -(z - x)^2 / (2 v) moves as z - x, which is rounded as z is, and relatively; and that of the
    # nearest level x, which is subtracted, likewise.
    alpha_0, variance = float(c.alpha.ravel()[0]), math.exp(float(c.gamma.ravel()[0]))
    z = io["dec/z_0"].astype(np.float64)[:, :, ::2, ::2, None] / alpha_0
    distance = np.abs(z - (2.0 * np.arange(256) + 1.0 - 256) / 256)
    moved = distance / variance * (np.abs(z) + 1.0) + distance**2 / variance
    off = 4.0 * ROUNDING * (moved + moved.min(axis=-1, keepdims=True) + 1.0)
    note("log-probabilities, part of tolerance", np.max(np.abs(ours - theirs) / off))
    assert np.all(np.abs(ours - theirs) <= off)
