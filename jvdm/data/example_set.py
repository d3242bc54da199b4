"""Images to evaluate or to score: one split of a source, or any images of the model's shape."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jvdm.core.errors import UserError, unknown
from jvdm.core.files import expanded
from jvdm.data import image_folder, local
from jvdm.data.dataset import (
    Dataset,
    check_conditioning,
    check_images,
    examples,
    fingerprint,
    shape_text,
)
from jvdm.data.sources import load, parse
from jvdm.data.splitting import HeldOut

if TYPE_CHECKING:  # it imports jax, which --help does not need
    from jvdm.core.records import Batch, Conditioning


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """Images with a name.

    Attributes:
        name, version: of the source.
        split: "train", "test", "all", or the first ones of a split, "test[:100]".
        images: [N, *data_shape] uint8, or float32 of continuous data.
        names: of the images, where they come from files.
        conditioning: what else is known of each image, as in `Dataset`.
    """

    name: str
    version: str
    split: str
    images: np.ndarray
    names: tuple[str, ...] | None = None
    conditioning: "Conditioning | None" = None

    @property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of shape, values and what else is known."""
        return fingerprint(self.images, self.conditioning)

    @property
    def batch(self) -> "Batch":
        """The images, with what is known of each."""
        return examples(self.images, self.conditioning)

    def first(self, num_images: int) -> "ExampleSet":
        """The first `num_images` examples; all of them if it is 0."""
        if not 0 < num_images < len(self.images):
            return self
        return dataclasses.replace(
            self,
            split=f"{self.split}[:{num_images}]",
            images=self.images[:num_images],
            names=self.names and self.names[:num_images],
            conditioning=self.conditioning and _first(self.conditioning, num_images),
        )


def _first(conditioning: "Conditioning", num: int) -> "Conditioning":
    return conditioning._make(a if a is None else a[:num] for a in conditioning)


def of_dataset(dataset: Dataset, split: str) -> ExampleSet:
    """A split of a dataset.

    Raises:
        UserError: it has no such split.
    """
    return ExampleSet(
        name=dataset.name,
        version=dataset.version,
        split=split,
        images=dataset.split(split),
        conditioning=dataset.conditioning(split),
    )


def load_examples(
    source: str,
    split: str,
    *,
    num_levels: int,
    data_dir: str = "",
    test_fraction: float | None = None,
    split_seed: int = 0,
) -> ExampleSet:
    """A split of a source.

    Args:
        source: as in `load`; in addition, an .npz with a single array [N, H, W, C], such as the samples that
            jvdm writes, or a folder of images without train/ and test/, are taken whole.
        split: "train" or "test"; of a folder also the name of another folder in it.
        num_levels: K of the model; 0 is the source's own.
        data_dir: of published sets.
        test_fraction, split_seed: as in `load`, to get a split of images that a run was trained on and that
            have no test split; None takes them whole.

    Raises:
        UserError: as `load`.
    """
    kind, path = parse(source, num_levels)
    if split not in ("train", "test") and not (kind == "folder" and image_folder.has_subfolder(path, split)):
        raise unknown("split", split, ("train", "test"))
    levels = num_levels or 256
    held_out = None if test_fraction is None else HeldOut(test_fraction=test_fraction, seed=split_seed)
    if kind == "npz":
        images, taken, version = local.read_npz_split(path, split, num_levels=levels, held_out=held_out)
        check_images(images, split, levels, path)
        return ExampleSet(name=f"npz:{Path(path).name}", version=version, split=taken, images=images)
    if kind == "folder":
        found = image_folder.read_folder_split(path, split, num_levels=levels, held_out=held_out)
        check_images(found.images, split, levels, path)
        return ExampleSet(
            name=f"folder:{expanded(path, 'config.score.source').resolve().name}",
            version=found.version,
            split=found.split,
            images=found.images,
            names=found.names,
        )
    return of_dataset(load(source, num_levels=num_levels, data_dir=data_dir), split)


def check_suits(example_set: ExampleSet, shape: tuple[int, ...], num_levels: int) -> None:
    """Refuse examples that do not fit a model.

    Args:
        example_set: the examples.
        shape: of the model's examples.
        num_levels: K of the model; 0 is continuous data.

    Raises:
        UserError: another shape, discrete data for a continuous model or the reverse, or what is known of the
            examples is not as it should be.
    """
    name, images = example_set.name, example_set.images
    if images.shape[1:] != shape:
        found, wanted = (shape_text(s) for s in (images.shape[1:], shape))
        raise UserError(f"{name}: the images are {found}, the model's are {wanted}")
    if np.issubdtype(images.dtype, np.integer) != bool(num_levels):
        kind = "discrete" if num_levels else "continuous"
        raise UserError(f"{name}: the images have dtype {images.dtype}; the model's data are {kind}")
    check_conditioning(example_set.conditioning, len(images), name)
