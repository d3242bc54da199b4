"""The records that the parts of the library exchange."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, UInt8


class Batch(NamedTuple):
    """What the data gives.

    Attributes:
        images: [b, h, w, c] integers 0..K-1, or float32 where the data is continuous.
        conditioning: [b] a scalar known of each image, or zeros.
    """

    images: UInt8[Array, "b h w c"] | Float[Array, "b h w c"]
    conditioning: Float[Array, " b"]


class Coefficients(NamedTuple):
    """z_t = alpha x + sigma eps, gamma = log(sigma^2 / alpha^2).

    Every field is broadcastable to the data: [b, 1, 1, 1] for scalar schedules, [b, h, w, c] for
    per-pixel ones.
    """

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]
    gamma: Float[Array, "..."]
    dgamma_dt: Float[Array, "..."]


class Context(NamedTuple):
    """What schedule and network know besides z and t.

    Attributes:
        conditioning: [b] a scalar known of each image.
        latent: [b, m] an auxiliary latent, or None.
        charge: [b] what the latent costs in the bound, nats, or None.
        log_ratio: [b] log q(latent | image) - log p(latent), whose mean is the charge, where it is known.
        surrogate: [b] what the released code charges, where that is no bound, or None.
    """

    conditioning: Float[Array, " b"]
    latent: Float[Array, "b m"] | None = None
    charge: Float[Array, " b"] | None = None
    log_ratio: Float[Array, " b"] | None = None
    surrogate: Float[Array, " b"] | None = None


class Draws(NamedTuple):
    """All random numbers of one evaluation of the bound.

    Attributes:
        u: [b] numbers in [0, 1) from which times are made.
        eps: [b, h, w, c] noise at time t.
        eps_0: [b, h, w, c] noise at time 0, for the reconstruction term.
        probe: [b, h, w, c] of -1 and 1, for the second-order loss; None where that is not wanted.
        u_data: [b, h, w, c] numbers in [0, 1) that dequantize the data of score matching; None likewise.
        latent, other_latent: [b, ...] of two samples of a latent (`diffusion.latents`); None without one.
        step: of training, for what is annealed; None in evaluation.
    """

    u: Float[Array, " b"]
    eps: Float[Array, "b h w c"]
    eps_0: Float[Array, "b h w c"]
    probe: Float[Array, "b h w c"] | None = None
    u_data: Float[Array, "b h w c"] | None = None
    latent: Any = None
    other_latent: Any = None
    step: Array | None = None


class Prediction(NamedTuple):
    """The denoiser's estimate of eps, with the coefficients it was made at."""

    eps: Float[Array, "b h w c"]
    coefficients: Coefficients


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
