"""The contract of estimators of the likelihood, and their registry."""

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from jvdm.core.records import Batch
from jvdm.core.registry import Config, Registry
from jvdm.evaluation.record import Provenance, Result
from jvdm.evaluation.rows import Rows
from jvdm.model import Model

Params = Any
# [N, *data_shape], or a `Batch` of N images and what is known of each.
Examples = Batch | np.ndarray


@runtime_checkable
class Estimator(Protocol):
    """A compiled estimate of the likelihood, for any parameters and images, which describes itself.

    Attributes:
        name: under which it is registered.
        draws_field: the field of the section `eval` that holds the draws per image.
        shown: names of rows that are no terms, whose mean the progress shows.
        terms: names of the rows that sum to the bound.
        draws: n, per image.
        latent: the model's, or None.
    """

    name: ClassVar[str]
    draws_field: ClassVar[str] = "draws"
    shown: ClassVar[tuple[str, ...]] = ()

    @property
    def terms(self) -> tuple[str, ...]: ...

    @property
    def draws(self) -> int: ...

    @property
    def latent(self) -> Any: ...

    @classmethod
    def from_config(cls, config: Config, model: Model, mesh: Mesh) -> Self:
        """The estimator that a config describes.

        Args:
            config: all of it.
            model: what is evaluated.
            mesh: has a `data` axis.

        Raises:
            UserError: settings that do not go together, or that do not suit the model.
        """
        ...

    def rows(
        self, params: Params, examples: Examples, key: jax.Array, *, first: int = 0, start: int = 0
    ) -> Iterator[Rows]:
        """Rows of the images from `first` on, in chunks.

        Image i draws from the key of index start + i of the key named `name`: estimators of different names
        are independent, and one of them with other settings shares draws with itself.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON values for the record."""
        ...

    def description(self) -> str:
        """The estimator in words."""
        ...

    def file_name(self) -> str:
        """The beginning of a record's file name, different for settings that differ."""
        ...

    def result(
        self, rows: Rows, provenance: Provenance, *, params: Params, examples: Examples, key: jax.Array
    ) -> Result:
        """The record.

        Args:
            rows: of all images.
            provenance: where they come from, and the index of the first example.
            params, examples, key: as in `rows`, from which they were computed.
        """
        ...


ESTIMATORS = Registry("estimator", Estimator)
