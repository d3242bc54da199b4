"""The records that the parts of the library exchange."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Integer


class Conditioning(NamedTuple):
    """What the data say about each example apart from its values; None for what they do not say.

    Attributes:
        labels: [b] the class of each example.
        augmented: [b] 1 where an example was augmented and the network is told of it, 0 where it was not.
    """

    labels: Int[Array, " b"] | None = None
    augmented: Float[Array, " b"] | None = None


class Batch(NamedTuple):
    """What the data give.

    Attributes:
        x: [b, *data_shape] integers 0..K-1, or float32 where the data are continuous.
        conditioning: what else is known of each example.
    """

    x: Integer[Array, " b *d"] | Float[Array, " b *d"]
    conditioning: Conditioning = Conditioning()


def as_batch(examples: Any) -> Batch:
    """Examples as a `Batch`: an array has values, of which nothing else is known."""
    return examples if isinstance(examples, Batch) else Batch(examples)


def take(examples: Batch, index: Any) -> Batch:
    """Some of the examples, by an index or a slice along the first axis, with all that is known of them."""
    return jax.tree.map(lambda a: np.asarray(a[index]), examples)


class Coefficients(NamedTuple):
    """The forward process at times t: z_t = alpha x + sigma eps, gamma = log(sigma^2 / alpha^2).

    Every field broadcasts to the data: [b, 1, 1, 1] for a scalar schedule of images, [b, h, w, c] for a
    schedule of every pixel.

    Attributes:
        alpha, sigma, gamma, dgamma_dt: as above; gamma is -inf and dgamma_dt inf at a time without noise.
        dlogalpha_dt: d log alpha / dt, the drift of the forward SDE over z; finite at all times.
        g2: g^2 = sigma^2 dgamma/dt, the squared volatility of the SDEs; finite at all times.
    """

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]
    gamma: Float[Array, "..."]
    dgamma_dt: Float[Array, "..."]
    dlogalpha_dt: Float[Array, "..."]
    g2: Float[Array, "..."]


class Context(NamedTuple):
    """What schedule, network and encoder know about each example apart from z and t.

    Attributes:
        conditioning: of the data.
        latent: [b, m] an auxiliary latent, or None.
        place: [b] in training, the places of the examples in the batch, which dropout depends on.
    """

    conditioning: Conditioning = Conditioning()
    latent: Float[Array, "b m"] | None = None
    place: Int[Array, " b"] | None = None


class Dropout(NamedTuple):
    """What dropout is drawn from.

    Attributes:
        key: of the step.
        place: [b] the places of the examples in the batch: an example's masks depend on its own only.
    """

    key: jax.Array
    place: Int[Array, " b"]


class LatentCost(NamedTuple):
    """What an auxiliary latent costs in the bound, nats.

    Attributes:
        charge: [b] what is added to the bound.
        log_ratio: [b] log q(latent | x) - log p(latent), whose mean is the charge; None where q is unknown.
        surrogate: [b] what the released code charges, where that is not a bound; None elsewhere.
    """

    charge: Float[Array, " b"]
    log_ratio: Float[Array, " b"] | None = None
    surrogate: Float[Array, " b"] | None = None


class Draws(NamedTuple):
    """All random numbers of one evaluation of the bound.

    Attributes:
        u: [b] numbers in (0, 1) from which times are made.
        eps: [b, *data_shape] noise at time t.
        eps_0: [b, *data_shape] noise at time 0, for the reconstruction term.
        probe: [b, *data_shape] of -1 and 1, for the second-order loss; None where that is not wanted.
        u_data: [b, *data_shape] numbers in (0, 1) that dequantize the data of score matching; None elsewhere.
        latent, other_latent: [b, ...] of two samples of a latent (`diffusion.latents`); None without one.
        step: of training, for what is annealed; None in evaluation.
    """

    u: Float[Array, " b"]
    eps: Float[Array, " b *d"]
    eps_0: Float[Array, " b *d"]
    probe: Float[Array, " b *d"] | None = None
    u_data: Float[Array, " b *d"] | None = None
    latent: Any = None
    other_latent: Any = None
    step: Array | None = None


class TimeGamma(NamedTuple):
    """The schedule at the drawn times; both fields as in `Coefficients`."""

    gamma: Float[Array, "..."]
    dgamma_dt: Float[Array, "..."]


class LossTerms(NamedTuple):
    """Terms of the variational bound on -log P(x), per example, in nats.

    Attributes:
        reconstruction: [b] -log p(x | z_0).
        prior: [b] KL(q(z_1 | x) || p(z_1)).
        diffusion: [b] the denoising term.
        second_order: [b] a penalty of training, which is no part of the bound; None where it is not used.
        latent: [b] what an auxiliary latent costs; None without one.
    """

    reconstruction: Float[Array, " b"]
    prior: Float[Array, " b"]
    diffusion: Float[Array, " b"]
    second_order: Float[Array, " b"] | None = None
    latent: Float[Array, " b"] | None = None

    @property
    def total(self) -> Float[Array, " b"]:
        """[b] the bound on -log P(x), nats."""
        total = self.reconstruction + self.prior + self.diffusion
        return total if self.latent is None else total + self.latent

    def parts(self) -> dict[str, Float[Array, " b"]]:
        """The terms of the bound by name."""
        names = ("reconstruction", "prior", "diffusion", "latent")
        return {name: term for name in names if (term := getattr(self, name)) is not None}

    @property
    def objective(self) -> Float[Array, " b"]:
        """[b] what training minimises: the bound and the penalty, nats."""
        return self.total if self.second_order is None else self.total + self.second_order

    def metrics(self) -> dict[str, Float[Array, " b"]]:
        """What training logs: the bound, `bpd`, first, and every term, nats."""
        more = {} if self.second_order is None else {"second_order": self.second_order}
        return {"bpd": self.total, **self.parts(), **more}


class ScoreMatching(NamedTuple):
    """The objective of denoising score matching, per example.

    Attributes:
        score_matching: [b] nats if its weight is that of the likelihood; no bound in any case.
    """

    score_matching: Float[Array, " b"]

    @property
    def objective(self) -> Float[Array, " b"]:
        """[b] what training minimises."""
        return self.score_matching

    def metrics(self) -> dict[str, Float[Array, " b"]]:
        """What training logs."""
        return self._asdict()
