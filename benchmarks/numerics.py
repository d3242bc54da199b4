"""Whether a device computes as accurately as evaluation claims, against float64.

Each check computes something on the first device at the precision of evaluation (`jvdm.core.precision`) and
compares it with a reference:

    1. layers and sums    float64 numpy, written out here
    2. VLB and ODE        float64 on the CPU, of a network that computes in the dtype of its input; noise and
                          probes are drawn once, in float32, because float64 draws other numbers
    3. VLB of the U-Net   float32 on the CPU, by the estimator itself: the U-Net has float32 parts always

Errors are relative: the root mean square of the difference over that of the reference.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jvdm import config as config_lib
from jvdm import model as model_lib
from jvdm.core import sharding
from jvdm.core.keys import indexed
from jvdm.core.precision import full_precision
from jvdm.core.records import Batch, Context
from jvdm.core.shapes import sum_example
from jvdm.diffusion import likelihood
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import TRACES
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.solvers import SOLVERS
from jvdm.evaluation import VLB, passes
from jvdm.evaluation.rows import bits_per_dim
from jvdm.evaluation.vlb import for_evaluation
from jvdm.model import Model, objectives
from jvdm.networks import NETWORKS
from jvdm.networks.convolution import convolve
from jvdm.networks.layers import GroupNorm, attend

# Float32 products give 1e-7 to 1e-6. A product in TF32 gives 3e-4 and one in bfloat16 2e-3, so that a device
# on which evaluation does not get full float32 is far above the limit.
PRODUCTS = 1e-5
# Of 12,288 positive terms: 2.65 bits/dim are right to 3e-6, below the fifth decimal.
SUM = 1e-6
# Bits/dim to the fourth decimal, which is the last that records show: 5e-5 of some 5 bits/dim.
BITS_PER_DIM = 1e-5
SHAPE, LEVELS, IMAGES = (8, 8, 3), 256, 8


class Check(NamedTuple):
    """One comparison.

    Attributes:
        name: of what is computed.
        limit: of the error.
        error: computes it.
    """

    name: str
    limit: float
    error: Callable[[], float]


def relative_error(value: Any, reference: Any) -> float:
    """Root mean square of the difference over that of the reference."""
    difference = np.asarray(value, np.float64) - np.asarray(reference, np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(reference, np.float64)))


def on_device(function: Callable, *arguments: Any) -> Any:
    """The value on JAX's first device, at the precision of evaluation."""
    with full_precision():
        return jax.device_get(jax.jit(function)(*arguments))


def in_float64(function: Callable, *arguments: Any) -> Any:
    """The value on the CPU, with all floating-point arguments in float64."""

    def widened(a):
        return a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), full_precision():
        return jax.device_get(jax.jit(function)(*jax.tree.map(widened, jax.device_get(arguments))))


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, KERNEL, DY = _normal(0, 8, 16, 16, 64), _normal(1, 3, 3, 64, 64), _normal(2, 8, 16, 16, 64)


def _taps(x: np.ndarray) -> list[list[np.ndarray]]:
    """What the tap (i, j) of a 3 x 3 kernel meets, [3][3] of the shape of x, in float64."""
    _, h, w, _ = x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [[padded[:, i : i + h, j : j + w] for j in range(3)] for i in range(3)]


def _convolution(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    taps = _taps(x)
    return sum(taps[i][j] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3))


def convolution() -> float:
    """Of the 3 x 3 convolution."""
    return relative_error(on_device(convolve, X, KERNEL), _convolution(X, KERNEL))


def input_derivative() -> float:
    """Of the convolution's derivative with respect to its input."""
    dx = on_device(lambda x, kernel, dy: jax.vjp(convolve, x, kernel)[1](dy)[0], X, KERNEL, DY)
    return relative_error(dx, _convolution(DY, KERNEL[::-1, ::-1].swapaxes(2, 3)))


def kernel_derivative() -> float:
    """Of the convolution's derivative with respect to its kernel."""
    dk = on_device(lambda x, kernel, dy: jax.vjp(convolve, x, kernel)[1](dy)[1], X, KERNEL, DY)
    dy = DY.astype(np.float64)
    reference = [[np.tensordot(tap, dy, ((0, 1, 2), (0, 1, 2))) for tap in row] for row in _taps(X)]
    return relative_error(dk, reference)


def group_norm() -> float:
    """Of group normalisation of activations whose mean is as large as their spread."""
    x, groups = X + 1.0, 16
    norm = GroupNorm(groups)
    params = jax.device_get(jax.jit(norm.init)(jax.random.key(0), x))
    by_group = x.astype(np.float64).reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, variance = by_group.mean(axis=(1, 3), keepdims=True), by_group.var(axis=(1, 3), keepdims=True)
    reference = (by_group - mean) / np.sqrt(variance + norm.epsilon)
    return relative_error(on_device(norm.apply, params, x), reference.reshape(x.shape))


def attention() -> float:
    """Of attention over 256 positions."""
    q, k, v = (_normal(seed, 8, 256, 64) for seed in (3, 4, 5))
    wide_q, wide_k, wide_v = (a.astype(np.float64) for a in (q, k, v))
    logits = wide_q @ wide_k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    reference = weights / weights.sum(axis=-1, keepdims=True) @ wide_v
    return relative_error(on_device(attend, q, k, v), reference)


def example_sum() -> float:
    """Of the sum over an image of 64 x 64 x 3 squares."""
    squares = _normal(6, 16, 64, 64, 3) ** 2
    return relative_error(on_device(sum_example, squares), squares.sum(axis=(1, 2, 3), dtype=np.float64))


class SmallNetwork(nn.Module):
    """Two 3 x 3 convolutions in the dtype of their input; the library's networks are float32 in parts."""

    channels: int = 16

    @nn.compact
    def __call__(self, z, time, context=Context(), *, train=False):
        del context, train
        init = nn.initializers.lecun_normal()
        first = self.param("first", init, (3, 3, z.shape[-1], self.channels))
        shift = self.param("shift", nn.initializers.normal(1.0), (self.channels,))
        last = self.param("last", init, (3, 3, self.channels, z.shape[-1]))
        h = convolve(z, first) + time[:, None, None, None] * shift[None, None, None]
        return z + convolve(nn.swish(h), last)


class Small(NamedTuple):
    """A model with a small network, and what its likelihoods are computed from.

    Attributes:
        model, params: on the host.
        levels: [IMAGES, *SHAPE] random images.
        keys: of the images.
    """

    model: Model
    params: Any
    levels: np.ndarray
    keys: jax.Array


def _config() -> ConfigDict:
    config = config_lib.default()
    config.schedule = SCHEDULES.spec("learned_scalar", gamma_min=-13.3, gamma_max=5.0)
    config.network = NETWORKS.spec("vdm_unet", channels=16, num_blocks=2, dropout=0.0)
    return config


def _small() -> Small:
    model = model_lib.build(_config(), SHAPE, LEVELS)
    model = dataclasses.replace(model, network=SmallNetwork(), evaluating=True)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    levels = np.random.default_rng(7).integers(0, LEVELS, (IMAGES, *SHAPE), dtype=np.uint8)
    return Small(model, params, levels, indexed(jax.random.key(1), jnp.arange(IMAGES)))


def small_vlb() -> float:
    """Of the variational bound of eight images, bits/dim."""
    model, params, levels, keys = _small()
    draws = jax.jit(model.draw)(keys, (jnp.arange(IMAGES) + 0.5) / IMAGES)

    def bound(params, draws, levels):
        return objectives.bound(model, params, draws, Batch(levels)).total

    return relative_error(*(compute(bound, params, draws, levels) for compute in (on_device, in_float64)))


def small_ode() -> float:
    """Of the ODE likelihood of eight images, bits/dim, in steps that both take alike."""
    model, params, levels, keys = _small()
    dequantization = DEQUANTIZATIONS.build(DEQUANTIZATIONS.spec("truncated_normal"))
    trace = TRACES.build(TRACES.spec("hutchinson"))
    solver = SOLVERS.build(SOLVERS.spec("fixed", method="rk4", num_steps=20))
    start = np.zeros(1, np.float32)

    def noise(params):
        at = jax.tree.map(lambda a: a[0], model.at(params, jnp.zeros(1)))
        return jax.vmap(lambda key, x: dequantization.draw(key, x, at, LEVELS, model.data_map))(keys, levels)

    def log_p(params, e, probes, start, levels):
        at = model.at(params, start)
        dequantized = dequantization(levels, e, at, LEVELS, model.data_map)
        field = likelihood.batched_field(model.ode_drift, trace)

        def solve(z, probes):
            return likelihood.integrate(
                field(params, Context(), probes),
                z,
                num_probes=1,
                start=start[0],
                prior=model.prior(params),
                solver=solver,
            )

        density = jax.vmap(solve)(dequantized.z, probes)
        return density.prior + density.trace[:, 0] + dequantized.log_decoder - dequantized.log_q

    probes = jax.vmap(lambda key: trace.draw(key, SHAPE))(keys)
    arguments = (params, jax.jit(noise)(params), probes, start, levels)
    return relative_error(*(compute(log_p, *arguments) for compute in (on_device, in_float64)))


def unet_vlb() -> float:
    """Of the estimator's bits/dim with a small U-Net: this device against the CPU, both in float32."""
    model = for_evaluation(model_lib.build(_config(), SHAPE, LEVELS))
    rng = np.random.default_rng(8)
    # Away from the initial weights, whose last layers are zero.
    params = jax.tree.map(
        lambda a: (a + 0.05 * rng.standard_normal(a.shape)).astype(np.float32),
        jax.device_get(jax.jit(model.init)(jax.random.key(0))),
    )
    levels = rng.integers(0, LEVELS, (IMAGES, *SHAPE), dtype=np.uint8)

    def score(device):
        # Keys are drawn from on the device that computes.
        with jax.default_device(device):
            estimator = VLB(model, sharding.make_mesh([device]), batch_size=IMAGES, draws=2)
            rows = passes.run(estimator, params, levels, jax.random.key(2))
        return bits_per_dim(rows, estimator.terms)

    return relative_error(score(jax.devices()[0]), score(jax.devices("cpu")[0]))


CHECKS = (
    Check("3x3 convolution", PRODUCTS, convolution),
    Check("its derivative, input", PRODUCTS, input_derivative),
    Check("its derivative, kernel", PRODUCTS, kernel_derivative),
    Check("GroupNorm", PRODUCTS, group_norm),
    Check("attention", PRODUCTS, attention),
    Check("sum_example", SUM, example_sum),
    Check("VLB, small network", BITS_PER_DIM, small_vlb),
    Check("ODE, small network", BITS_PER_DIM, small_ode),
    Check("VLB, U-Net, against CPU", BITS_PER_DIM, unet_vlb),
)
