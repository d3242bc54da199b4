"""Auxiliary latents c: how an encoder's output becomes a sample of q(c | x), and what the sample costs.

A model that is conditioned on c has the bound (2312.13236, section 3)

    -log P(x) <= E_q[ -log p(x | c) ] + KL(q(c | x) || p(c))

The second term is the charge, in nats, of m numbers c with logits theta from the encoder:

    1. gaussian:  c = mu + sqrt(v) e, v = softplus of the second half of theta, prior N(0, I);
                  charge 1/2 sum(mu^2 + v - ln v - 1)
    2. gumbel:    c one-hot, at the largest theta_i + g_i, g_i ~ Gumbel(0), which is a sample of
                  q = softmax(theta); uniform prior; charge sum q (ln q + ln m). The gradient is that of
                  softmax((theta + g) / tau), tau = max(1/2, e^(-step / 10^5)) (1611.01144)
    3. k_subset:  c of k ones, an exact sample of q proportional to e^(theta . c) (`subsets`); uniform
                  prior over subsets; exact charge
    4. k_hot_surrogate (in `k_hot_surrogate`): c of k ones, of the released code, whose KL is not known

    5. A c that is a function of x costs what it costs under the prior, -log p(c): ln m of (2), ln C(m, k) of
       (3) and (4), and infinitely much of (1).
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvdm.core import options, random
from jvdm.core.options import option
from jvdm.core.registry import Registry
from jvdm.diffusion import subsets

Logits = Float[Array, "b n"]
Noise = Float[Array, "b ..."]
Value = Float[Array, "b m"]


class LatentSample(NamedTuple):
    """A sample of q(c | x).

    Attributes:
        value: [b, m] c, with the gradient of its estimator.
        charge: [b] nats, with its exact gradient; KL(q || p) where `is_bound`.
        log_ratio: [b] log q - log p of the value, nats, whose mean is the charge; None where q is not known.
    """

    value: Value
    charge: Float[Array, " b"]
    log_ratio: Float[Array, " b"] | None = None


class Latent(Protocol):
    """A latent, a frozen dataclass.

    Attributes:
        size: m, numbers of c; 0 is no latent.
        num_logits: n, of the encoder's output.
        is_bound: the charge is KL(q || p).
        mode_charge: -log p(c) of `mode`, nats, inf where it has no probability.
        score_function: the value has no gradient, so that training needs `subsets.leave_one_out`.
    """

    size: int
    num_logits: int
    is_bound: ClassVar[bool]
    mode_charge: float
    score_function: bool = False

    def draw(self, key: jax.Array) -> Array:
        """What is random in the sample of one example.

        Args:
            key: of random numbers.

        Returns:
            [...], the `noise` of `sample` for one example.
        """
        ...

    def prior(self, key: jax.Array) -> Array:
        """A sample of the prior p(c), to generate from.

        Args:
            key: of random numbers.

        Returns:
            [m].
        """
        ...

    def sample(self, logits: Logits, noise: Noise, step: jax.Array | None = None) -> LatentSample:
        """c and its charge.

        Args:
            logits: [b, n] from the encoder.
            noise: [b, ...] of `draw`.
            step: of training, where an estimator is annealed; its last form if not given.
        """
        ...

    def mode(self, logits: Logits) -> Value:
        """The c that is likeliest, which costs `mode_charge`.

        Args:
            logits: [b, n] from the encoder.

        Returns:
            [b, m].
        """
        ...


LATENTS = Registry("latent", Latent)


def categorical_kl(logits: Logits) -> Float[Array, " b"]:
    """KL(softmax of the logits || uniform).

    Args:
        logits: [b, n], not normalised.

    Returns:
        [b] nats.
    """
    log_q = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_q) * (log_q + math.log(logits.shape[-1])), axis=-1)


@LATENTS.register("none")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoLatent:
    """No latent: c has no numbers and costs nothing, and a model with it has no encoder."""

    size: ClassVar[int] = 0
    num_logits: ClassVar[int] = 0
    is_bound: ClassVar[bool] = True
    mode_charge: ClassVar[float] = 0.0

    def draw(self, key: jax.Array) -> Array:
        """As `Latent.draw`: of no numbers."""
        return jnp.zeros(0)

    def prior(self, key: jax.Array) -> Array:
        """As `Latent.prior`: of no numbers."""
        return jnp.zeros(0)

    def sample(self, logits: Logits, noise: Noise, step: jax.Array | None = None) -> LatentSample:
        """As `Latent.sample`: of no numbers."""
        return LatentSample(logits, jnp.zeros(len(logits)), jnp.zeros(len(logits)))

    def mode(self, logits: Logits) -> Value:
        """As `Latent.mode`: of no numbers."""
        return logits


@LATENTS.register("gaussian")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Latent (1).

    Attributes:
        size: m.
    """

    size: int = option(50, low=1)
    is_bound: ClassVar[bool] = True
    mode_charge: ClassVar[float] = math.inf

    def __post_init__(self):
        options.check(self)

    @property
    def num_logits(self) -> int:
        """Means, and variances before softplus."""
        return 2 * self.size

    def draw(self, key: jax.Array) -> Array:
        """As `Latent.draw`."""
        return random.normal(key, "latent", (self.size,))

    def prior(self, key: jax.Array) -> Array:
        """As `Latent.prior`."""
        return random.normal(key, "latent_prior", (self.size,))

    def sample(self, logits: Logits, noise: Noise, step: jax.Array | None = None) -> LatentSample:
        """c and its charge.

        Args:
            logits: [b, n] from the encoder, n = `num_logits`.
            noise: [b, ...] of `draw`.
            step: of training, where an estimator is annealed; its last form if not given.
        """
        mean, raw = jnp.split(logits, 2, axis=-1)
        # Below -30, ln softplus(x) is x to 5e-14, and softplus may underflow.
        log_softplus = jnp.log(jax.nn.softplus(jnp.maximum(raw, -30.0)))
        log_variance = jnp.where(raw < -30.0, raw, log_softplus)
        charge = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - log_variance - 1.0, axis=-1)
        value = mean + jnp.exp(0.5 * log_variance) * noise
        return LatentSample(value, charge, 0.5 * jnp.sum(value**2 - noise**2 - log_variance, axis=-1))

    def mode(self, logits: Logits) -> Value:
        """As `Latent.mode`."""
        return jnp.split(logits, 2, axis=-1)[0]


@LATENTS.register("gumbel")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gumbel:
    """Latent (2); the value is one-hot, so that the charge is its KL.

    Attributes:
        size: m.
        min_temperature, decay: of the gradient, tau = max(min_temperature, e^(-decay step)).
    """

    size: int = option(50, low=2)
    min_temperature: float = option(0.5, above=0.0)
    decay: float = option(1e-5, low=0.0)
    is_bound: ClassVar[bool] = True

    def __post_init__(self):
        options.check(self)

    @property
    def num_logits(self) -> int:
        """One for each class."""
        return self.size

    @property
    def mode_charge(self) -> float:
        """By (5), nats."""
        return math.log(self.size)

    def draw(self, key: jax.Array) -> Array:
        """As `Latent.draw`."""
        return random.gumbel(key, "latent", (self.size,))

    def prior(self, key: jax.Array) -> Array:
        """As `Latent.prior`."""
        return jax.nn.one_hot(random.index_below(key, "latent_prior", self.size), self.size)

    def temperature(self, step: jax.Array | None) -> Array:
        """tau of (2)."""
        annealed = jnp.zeros(()) if step is None else jnp.exp(-self.decay * step)
        return jnp.maximum(self.min_temperature, annealed)

    def sample(self, logits: Logits, noise: Noise, step: jax.Array | None = None) -> LatentSample:
        """As `Latent.sample`."""
        noisy = logits + noise
        soft = jax.nn.softmax(noisy / self.temperature(step))
        c = subsets.top_k(noisy, 1)
        log_ratio = jnp.sum(c * jax.nn.log_softmax(logits), axis=-1) + self.mode_charge
        return LatentSample(subsets.straight_through(c, soft), categorical_kl(logits), log_ratio)

    def mode(self, logits: Logits) -> Value:
        """As `Latent.mode`."""
        return subsets.top_k(logits, 1)


# How a sample has a gradient: (c, mu) -> c.
GRADIENTS = {"straight_through": subsets.straight_through, "reinforce": lambda c, mu: c}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetLatent:
    """What all latents of k ones share, with a uniform prior over subsets.

    Attributes:
        size: m.
        k: elements of a subset.

    Raises:
        ValueError: k is not from 1 to m - 1, or an option is out of its range.
    """

    size: int = 50
    k: int = 15

    def __post_init__(self):
        options.check(self)
        if not 1 <= self.k < self.size:
            raise ValueError(
                f"k is {self.k}: give a number from 1 to {self.size - 1}, less than size={self.size}"
            )

    @property
    def num_logits(self) -> int:
        """One for each element."""
        return self.size

    @property
    def mode_charge(self) -> float:
        """By (5), nats."""
        return subsets.log_count(self.size, self.k)

    def prior(self, key: jax.Array) -> Array:
        """As `Latent.prior`."""
        uniforms = random.uniform(key, "latent_prior", (self.size,))
        return subsets.sample(uniforms, jnp.zeros(self.size), self.k)

    def mode(self, logits: Logits) -> Value:
        """As `Latent.mode`."""
        return subsets.top_k(logits, self.k)


@LATENTS.register("k_subset")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KSubset(SubsetLatent):
    """Latent (3).

    Attributes:
        gradient: "straight_through", or "reinforce": the value has no gradient, and whoever trains adds
            `subsets.leave_one_out` of `log_ratio` and of the losses of two samples or more.
    """

    gradient: str = option("straight_through", choices=GRADIENTS)
    is_bound: ClassVar[bool] = True

    @property
    def score_function(self) -> bool:
        """Whether training needs `subsets.leave_one_out`."""
        return self.gradient == "reinforce"

    def draw(self, key: jax.Array) -> Array:
        """As `Latent.draw`."""
        return random.uniform(key, "latent", (self.size,))

    def sample(self, logits: Logits, noise: Noise, step: jax.Array | None = None) -> LatentSample:
        """As `Latent.sample`."""
        c = subsets.sample(noise, logits, self.k)
        moments = subsets.moments(logits, self.k)
        value = GRADIENTS[self.gradient](c, moments.marginals)
        charge = subsets.kl_to_uniform(logits, self.k, moments)
        log_ratio = subsets.log_prob(c, logits, self.k, moments) + self.mode_charge
        return LatentSample(value, charge, log_ratio)
