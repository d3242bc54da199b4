"""Random symmetries of images, each a permutation of an image's values.

1. An augmentation draws, per image, a horizontal flip, a number of quarter turns and a permutation
   of the channels; the identity where the image is left alone.
2. Together these permute the H*W*C values of an image, so that one gather applies all three, once
   per distinct combination in the batch.
3. Draws are made for the global batch and then sliced, so that the processes of one run together
   do exactly what one process would.
"""

import abc
import dataclasses
from typing import NamedTuple

import numpy as np

from jvdm.core import options
from jvdm.core.errors import UserError
from jvdm.core.options import option
from jvdm.core.registry import Registry


class Draws(NamedTuple):
    """What happens to each image of a batch: flip first, then turn, then permute the channels."""

    flip: np.ndarray  # bool [B], left to right
    quarter_turns: np.ndarray  # int [B], 0..3, counter-clockwise
    permutation: np.ndarray  # int [B, C]; output channel c is input channel permutation[:, c]
    augmented: np.ndarray | None = (
        None  # float32 [B], 1 where an image is augmented; None: the network is not told
    )

    def slice(self, start: int, stop: int) -> "Draws":
        """The draws of the images `start`..`stop - 1`."""
        part = slice(start, stop)
        augmented = None if self.augmented is None else self.augmented[part]
        return Draws(self.flip[part], self.quarter_turns[part], self.permutation[part], augmented)


def apply(images: np.ndarray, draws: Draws) -> np.ndarray:
    """The images under their draws.

    Args:
        images: uint8 [B, H, W, C].
        draws: for these B images.

    Returns:
        A new array, uint8 [B, H, W, C].
    """
    height, width, channels = images.shape[1:]
    values = np.arange(height * width * channels).reshape(height, width, channels)
    combined = np.column_stack([draws.flip, draws.quarter_turns, draws.permutation])
    kinds, kind_of = np.unique(combined, axis=0, return_inverse=True)
    out = images.reshape(len(images), -1).copy()
    for kind, (flip, turns, *permutation) in enumerate(kinds):
        moved = np.rot90(values[:, ::-1] if flip else values, turns)[..., permutation].reshape(-1)
        if (moved != values.reshape(-1)).any():
            members = np.flatnonzero(kind_of.reshape(-1) == kind)
            out[members] = np.take(out[members], moved, axis=1)
    return out.reshape(images.shape)


class Augmentation(abc.ABC):
    """A distribution over the symmetries of an image."""

    @abc.abstractmethod
    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Draws | None:
        """Draws for a batch of shape [B, H, W, C]; None without augmentation.

        Raises:
            UserError: images of a shape this augmentation cannot keep.
        """


AUGMENTATIONS = Registry("augmentation", Augmentation)


@AUGMENTATIONS.register("none")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAugmentation(Augmentation):
    """No augmentation, for data of any shape."""

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        """Nothing."""
        return None


@AUGMENTATIONS.register("flip")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip(Augmentation):
    """A horizontal flip with probability 1/2, which the network does not see."""

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Draws:
        """A fair coin for every image."""
        return _identity(shape)._replace(flip=rng.random(shape[0]) < 0.5)


@AUGMENTATIONS.register("vdm")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VdmAugmentation(Augmentation):
    """The augmentation of arXiv:2107.00630: some images are augmented, and the network sees which.

    Attributes:
        horizontal_flip: flip an augmented image with probability 1/2.
        rotate: turn it by k quarter turns, k uniform in 0..3; images must be square.
        permute_channels: put its channels in a uniformly random order.
        probability: that an image is augmented.
    """

    horizontal_flip: bool = True
    rotate: bool = True
    permute_channels: bool = True
    probability: float = option(0.5, low=0.0, high=1.0)

    def __post_init__(self):
        options.check(self)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Draws:
        """Independent draws for every image; all of them are made, whatever the options."""
        identity = _identity(shape)
        batch, height, width = shape[:3]
        if self.rotate and height != width:
            raise UserError(
                f"config.augmentation.rotate=True needs square images, not "
                f"{height}x{width}: set config.augmentation.rotate=False"
            )
        augmented = rng.random(batch) < self.probability
        flip = rng.random(batch) < 0.5
        turns = rng.integers(0, 4, batch)
        permutation = rng.permuted(identity.permutation, axis=1)
        return Draws(
            flip=flip & augmented & self.horizontal_flip,
            quarter_turns=turns * (augmented & self.rotate),
            permutation=np.where(
                (augmented & self.permute_channels)[:, None], permutation, identity.permutation
            ),
            augmented=augmented.astype(np.float32),
        )


def _identity(shape: tuple[int, ...]) -> Draws:
    if len(shape) != 4:
        raise UserError(
            f"augmentations are for images [N, H, W, C], not for data of shape {list(shape[1:])}: "
            "set config.augmentation.name=none"
        )
    batch, channels = shape[0], shape[3]
    return Draws(
        flip=np.zeros(batch, bool),
        quarter_turns=np.zeros(batch, np.int64),
        permutation=np.tile(np.arange(channels), (batch, 1)),
    )
