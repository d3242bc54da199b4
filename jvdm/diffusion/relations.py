"""How a network's output, eps and the score are related: affinely, at given coefficients.

With z = alpha x + sigma eps,

    1. eps = scale out + skip z, and the perfect output is eps_coeff eps + x_coeff x
    2. g^2 score = -(g^2 / sigma) eps, which the SDEs and the ODE need. At a time without noise that is 0 / 0,
       unless the output itself is a multiple of the score (`parameterizations`, relation 4)
"""

from typing import NamedTuple

from jaxtyping import Array, Float

from jvdm.core.records import Coefficients

Scale = Float[Array, "..."]
Data = Float[Array, "..."]


class Relation(NamedTuple):
    """Relation (1); every field broadcasts to the data.

    Attributes:
        scale, skip: eps = scale out + skip z.
        eps_coeff, x_coeff: the perfect output is eps_coeff eps + x_coeff x.
        g2_score_scale: g^2 score = g2_score_scale out, where that is so without division; None elsewhere.
    """

    scale: Scale
    skip: Scale
    eps_coeff: Scale
    x_coeff: Scale
    g2_score_scale: Scale | None = None

    def target(self, x: Data, eps: Data) -> Data:
        """The output of a perfect network.

        Args:
            x: [b, *data_shape] what z was made from.
            eps: [b, *data_shape] noise of z.

        Returns:
            [b, *data_shape].
        """
        return self.eps_coeff * eps + self.x_coeff * x

    def to_eps(self, out: Data, z: Data) -> Data:
        """eps_hat from the output, by (1).

        Args:
            out: [b, *data_shape] of the network.
            z: [b, *data_shape] it was made from.

        Returns:
            [b, *data_shape].
        """
        return self.scale * out + self.skip * z

    def squared_error(self, out: Data, x: Data, eps: Data) -> Data:
        """(eps - eps_hat)^2, formed in the space of the output, where it is well conditioned.

        Args:
            out: [b, *data_shape] of the network.
            x, eps: as in `target`.

        Returns:
            [b, *data_shape], elementwise.
        """
        return (self.scale * (self.target(x, eps) - out)) ** 2

    def predict(self, out: Data, z: Data, c: Coefficients) -> "Prediction":
        """What the output says of z.

        Args:
            out: [b, *data_shape] of the network.
            z: [b, *data_shape] it was made from.
            c: coefficients, at which this relation holds.

        Returns:
            The prediction, which keeps the output and this relation.
        """
        eps = self.to_eps(out, z)
        g2_score = -c.dgamma_dt * c.sigma * eps if self.g2_score_scale is None else self.g2_score_scale * out
        return Prediction(eps, c, g2_score, out, self)


class Prediction(NamedTuple):
    """A denoiser's estimate, and the coefficients it was made at.

    Attributes:
        eps: [b, *data_shape] eps_hat.
        coefficients: at z's time.
        g2_score: [b, *data_shape] g^2 times the score, by (2).
        output: [b, *data_shape] of the network.
        relation: of output and eps.
    """

    eps: Data
    coefficients: Coefficients
    g2_score: Data
    output: Data
    relation: Relation

    def squared_error(self, x: Data, eps: Data) -> Data:
        """As `Relation.squared_error`, of this output."""
        return self.relation.squared_error(self.output, x, eps)
