"""Models and contexts from parts, as tests have them."""

import dataclasses

from jvdm.core.records import Conditioning, Context
from jvdm.diffusion import samplers
from jvdm.diffusion.gaussian import GaussianProcess
from jvdm.diffusion.parameterizations import Noise
from jvdm.diffusion.schedules import FixedLinear
from jvdm.model import Model

# The parameters of a schedule that learns nothing.
FIXED = {"schedule": {}}


def gaussian(schedule, path, *, rank=3, prior="path"):
    """A Gaussian process over data of a rank."""
    return GaussianProcess(schedule=schedule, path=path, data_shape=(1,) * rank, prior_name=prior)


def compose(*, schedule, path, data_shape, prior="path", **parts):
    """A model of a Gaussian process."""
    process = gaussian(schedule, path, rank=len(data_shape), prior=prior)
    return Model(process=process, data_shape=tuple(data_shape), **parts)


def context_of(known):
    """The context of the flag of augmentation [b], or of [b, 1 + m] with a latent behind it."""
    if known.ndim == 1:
        return Context(Conditioning(augmented=known))
    return Context(Conditioning(augmented=known[:, 0]), known[:, 1:])


def predicted(eps_hat, z, c):
    """The prediction of a denoiser whose output is eps_hat."""
    return Noise()(c).predict(eps_hat, z, c)


def step(path, at_s, *, length=0.0, data_range=(-1.0, 1.0)):
    """A step of a sampler to `at_s` along a path, with noise at all times."""
    return samplers.Step(gaussian(FixedLinear(), path), FIXED, at_s, length, data_range, Context())


def with_process(model, **fields):
    """The model with other fields of its process."""
    return dataclasses.replace(model, process=dataclasses.replace(model.process, **fields))
