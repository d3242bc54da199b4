"""The swiss roll in the plane: continuous data whose density is known.

    x = r(t) / 10 + 0.1 n,  r(t) = t (cos t, sin t),  t = 3/2 pi (1 + 2 u),  u uniform, n ~ N(0, I)

the first and last coordinates of scikit-learn's swiss roll of noise 1, over 10 (2106.02808, section 6).
Its density is that of a Gaussian kernel of width 0.1 moved along the curve:

    p(x) = integral over u of N(x; r(t(u)) / 10, 0.01 I)
"""

import math

import numpy as np

from jvdm.data.dataset import Dataset

SHAPE = (2,)
WIDTH = 0.1
NUM_TRAIN, NUM_TEST = 100_000, 5_000


def curve(u: np.ndarray) -> np.ndarray:
    """[..., 2] points of the noise-free roll at u [...] in [0, 1]."""
    t = 1.5 * math.pi * (1.0 + 2.0 * np.asarray(u, np.float64))
    return (t / 10.0)[..., None] * np.stack([np.cos(t), np.sin(t)], axis=-1)


def generate(rng: np.random.Generator, n: int) -> np.ndarray:
    """[n, 2] float32 points."""
    x = curve(rng.random(n)) + WIDTH * rng.normal(size=(n, 2))
    return x.astype(np.float32)


def log_density(x: np.ndarray, *, num_kernels: int = 4000) -> np.ndarray:
    """[n] ln p(x) of points [n, 2], nats, by a midpoint rule over u.

    Neighbouring kernels are at most 0.004 apart along the curve, a small part of their width; the error of
    the rule comes from the ends of the curve, and is below 2e-5 nats.
    """
    x = np.asarray(x, np.float64)
    centres = curve((np.arange(num_kernels) + 0.5) / num_kernels)
    out = np.empty(len(x))
    for start in range(0, len(x), 512):
        part = x[start : start + 512]
        exponent = -0.5 * np.sum((part[:, None] - centres) ** 2, axis=-1) / WIDTH**2
        largest = exponent.max(axis=1)
        out[start : start + 512] = largest + np.log(np.mean(np.exp(exponent - largest[:, None]), axis=1))
    return out - math.log(2.0 * math.pi * WIDTH**2)


def load() -> Dataset:
    """100,000 points to train and 5,000 to test, always the same."""
    rng = np.random.default_rng(0)
    return Dataset(
        name="swissroll",
        version="1",
        num_levels=0,
        train=generate(rng, NUM_TRAIN),
        test=generate(rng, NUM_TEST),
        log_density=log_density,
    )
