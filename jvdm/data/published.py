"""The published datasets: their archives, shapes and numbers of images.

Sizes and SHA-256 checksums are those that tensorflow-datasets 4.9.10 publishes for the same files
in its checksum lists, which its own builders verify.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from jvdm.data import formats
from jvdm.data.archives import Archive

# The version of the prepared form: raise the first number when the images or their order change.
PREPARED_VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """One split: `read(path of the archive)` yields `num_images` PNG images."""

    archive: Archive
    read: Callable[[Path], Iterator[bytes]]
    num_images: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published dataset of 8-bit images."""

    description: str
    image_shape: tuple[int, int, int]
    train: Split
    test: Split

    def split(self, split: str) -> Split:
        """The split called "train" or "test"."""
        return {"train": self.train, "test": self.test}[split]


_CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    size=170052171,
)
_CIFAR10_TRAIN = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))
_CIFAR10_TEST = ("cifar-10-batches-bin/test_batch.bin",)

_MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_MNIST_TRAIN = Archive(
    url=_MNIST_URL + "train-images-idx3-ubyte.gz",
    sha256="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    size=9912422,
)
_MNIST_TEST = Archive(
    url=_MNIST_URL + "t10k-images-idx3-ubyte.gz",
    sha256="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    size=1648877,
)

_OLD_URL = "http://image-net.org/small/"
_OLD32_TRAIN = Archive(
    url=_OLD_URL + "train_32x32.tar",
    sha256="244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5",
    size=4113018880,
    served=False,
)
_OLD32_TEST = Archive(
    url=_OLD_URL + "valid_32x32.tar",
    sha256="862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7",
    size=161474560,
    served=False,
)
_OLD64_TRAIN = Archive(
    url=_OLD_URL + "train_64x64.tar",
    sha256="e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7",
    size=12112588800,
    served=False,
)
_OLD64_TEST = Archive(
    url=_OLD_URL + "valid_64x64.tar",
    sha256="eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd",
    size=477255680,
    served=False,
)

_NEW_URL = "https://image-net.org/data/downsample/"
_NEW32_TRAIN = Archive(
    url=_NEW_URL + "Imagenet32_train_npz.zip",
    sha256="94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc",
    size=3580435279,
)
_NEW32_TEST = Archive(
    url=_NEW_URL + "Imagenet32_val_npz.zip",
    sha256="013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a",
    size=139697668,
)


def _splits(train: Archive, test: Archive, read: Callable, num_train: int, num_test: int) -> dict[str, Split]:
    return {
        "train": Split(archive=train, read=read, num_images=num_train),
        "test": Split(archive=test, read=read, num_images=num_test),
    }


_PNG32 = functools.partial(formats.png_tar, image_shape=(32, 32, 3))
_PNG64 = functools.partial(formats.png_tar, image_shape=(64, 64, 3))
_NPZ32 = functools.partial(formats.npz_zip, image_shape=(32, 32, 3))

PUBLISHED: dict[str, Published] = {
    "cifar10": Published(
        description="CIFAR-10, 32x32 RGB, 50,000 and 10,000 images",
        image_shape=(32, 32, 3),
        train=Split(
            archive=_CIFAR10,
            read=functools.partial(formats.cifar_binary, members=_CIFAR10_TRAIN),
            num_images=50000,
        ),
        test=Split(
            archive=_CIFAR10,
            read=functools.partial(formats.cifar_binary, members=_CIFAR10_TEST),
            num_images=10000,
        ),
    ),
    "mnist": Published(
        description="MNIST, 28x28 grayscale, 60,000 and 10,000 images",
        image_shape=(28, 28, 1),
        **_splits(_MNIST_TRAIN, _MNIST_TEST, formats.mnist_idx, 60000, 10000),
    ),
    "imagenet32_old": Published(
        description="ImageNet 32x32 of arXiv:1601.06759 (no longer served), 1,281,149 and 49,999 images",
        image_shape=(32, 32, 3),
        **_splits(_OLD32_TRAIN, _OLD32_TEST, _PNG32, 1281149, 49999),
    ),
    "imagenet32_new": Published(
        description="ImageNet 32x32 of arXiv:1707.08819, 1,281,167 and 50,000 images",
        image_shape=(32, 32, 3),
        **_splits(_NEW32_TRAIN, _NEW32_TEST, _NPZ32, 1281167, 50000),
    ),
    "imagenet64": Published(
        description="ImageNet 64x64 of arXiv:1601.06759 (no longer served), 1,281,149 and 49,999 images",
        image_shape=(64, 64, 3),
        **_splits(_OLD64_TRAIN, _OLD64_TEST, _PNG64, 1281149, 49999),
    ),
}
