"""A TFDS builder that never imports TensorFlow.

What keeps TensorFlow out: images are handed over as PNG files (`io.BytesIO`), not as arrays, which
TFDS would encode with `tf.image`; archives are read by `jvdm.data.formats`, not by the download
manager; records are ArrayRecord; nothing is shuffled, so the order is the archive's own.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from jvdm.core.errors import UserError, one_line
from jvdm.data.archives import progress
from jvdm.data.published import PREPARED_VERSION, PUBLISHED, Published


class JvdmImages(tfds.core.GeneratorBasedBuilder):
    """The published datasets, one builder config each.

    Args:
        archive_paths: split -> verified archive; needed only to prepare.
        **kwargs: `config`, `data_dir` and `file_format`, as TFDS takes them.
    """

    name = "jvdm_images"
    VERSION = tfds.core.Version(PREPARED_VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS's own protocol)
        tfds.core.BuilderConfig(name=name, description=images.description)
        for name, images in PUBLISHED.items()
    ]

    def __init__(self, *, archive_paths: dict[str, Path] | None = None, **kwargs):
        self._archive_paths = archive_paths or {}
        super().__init__(**kwargs)

    @property
    def _images(self) -> Published:
        assert self.builder_config is not None
        return PUBLISHED[self.builder_config.name]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._images.description,
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=self._images.image_shape)}
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # jvdm.data.archives has fetched and verified already
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        images = self._images.split(split)
        path = self._archive_paths[split]
        count = 0
        with progress(images.num_images, f"preparing {split} images", unit="images") as bar:
            for png in images.read(path):
                yield count, {"image": io.BytesIO(png)}
                count += 1
                bar.update()
        if count != images.num_images:
            raise UserError(f"{path} holds {count} {split} images, not {images.num_images}; fetch it again")


def prepare(name: str, data_dir: Path, archive_paths: dict[str, Path]) -> None:
    """Write a published dataset as ArrayRecords under `data_dir`; a failure leaves no files behind.

    Raises:
        UserError: an archive that is not as it should be, or a disk that cannot be written.
    """
    builder = JvdmImages(
        config=name, data_dir=os.fspath(data_dir), file_format="array_record", archive_paths=archive_paths
    )
    tfds.disable_progress_bar()
    # TFDS announces itself on stdout with sizes it does not know.
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            builder.download_and_prepare()
    except RuntimeError as error:  # what ArrayRecord's writer raises where the disk is full
        raise UserError(
            f"cannot prepare {name} under {data_dir} ({one_line(error)}); free or change data_dir"
        ) from error


def read_png(name: str, data_dir: Path, split: str) -> Iterator[bytes]:
    """The PNG files of a prepared split, in order."""
    builder = JvdmImages(config=name, data_dir=os.fspath(data_dir), file_format="array_record")
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue] (decorated)
    step = 1024
    for start in range(0, len(source), step):
        for example in source.__getitems__(range(start, min(start + step, len(source)))):
            yield example["image"]
