"""From the name of a source to its images."""

from collections.abc import Callable
from typing import Any, TypeVar

from jvdm.core.errors import UserError, unknown
from jvdm.data import image_folder, local, registered, swissroll
from jvdm.data.dataset import Dataset
from jvdm.data.published import PUBLISHED
from jvdm.data.splitting import TEST_FRACTION, HeldOut

_LOCAL = {
    "digits": "scikit-learn's bundled 8x8 digits, 17 levels, 1500 to train and 297 to test",
    "swissroll": "generated points in the plane, continuous, 100,000 to train and 5,000 to test",
    "npz:FILE": "an .npz file with train_images and test_images, or one array of images, [N, H, W, C]",
    "folder:DIR": "image files of one size under DIR/train and DIR/test, or anywhere under DIR",
}

Loader = TypeVar("Loader", bound=Callable[[], Dataset])

# name -> (description, function), of sources outside jvdm.
_REGISTERED: dict[str, tuple[str, Callable[[], Dataset]]] = {}


def register(name: str, description: str) -> Callable[[Loader], Loader]:
    """Decorator that makes a function without arguments a source: `config.data.source = name`.

    Args:
        name: without a colon.
        description: what --help says of it, where --config names the file that registers it.
    """

    def decorate(read: Loader) -> Loader:
        if ":" in name or name in (*_LOCAL, *PUBLISHED, *_REGISTERED):
            raise KeyError(f"data source {name!r} exists already, or has a colon")
        _REGISTERED[name] = (description, read)
        return read

    return decorate


def describe_sources() -> str:
    """One line per source: its name and what it holds."""
    lines = {
        **_LOCAL,
        **{name: images.description for name, images in PUBLISHED.items()},
        **{name: description for name, (description, _) in _REGISTERED.items()},
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def load(
    source: str,
    *,
    num_levels: int = 0,
    data_dir: str = "",
    test_fraction: float = TEST_FRACTION,
    split_seed: int = 0,
) -> Dataset:
    """The images of a source.

    Args:
        source: `digits`, `swissroll`, `npz:FILE`, `folder:DIR`, `cifar10`, `mnist`, `imagenet32_old`,
            `imagenet32_new` or `imagenet64`, or one that `register` has entered.
        num_levels: K; 0 is the source's own number (17 for digits, 256 for images). Only
            `npz:` and `folder:` can have another one.
        data_dir: where published sets are prepared and looked for; by default `$TFDS_DATA_DIR`,
            else `~/tensorflow_datasets`.
        test_fraction, split_seed: which images are the test split of an `npz:` or `folder:` without one.

    Raises:
        UserError: an unknown source, or data that is missing, damaged or not as it should be.
    """
    kind, path = parse(source, num_levels)
    if kind in ("npz", "folder"):
        read = local.load_npz if kind == "npz" else image_folder.load_folder
        held_out = HeldOut(test_fraction=test_fraction, seed=split_seed)
        return read(path, num_levels=num_levels or 256, held_out=held_out)
    if kind == "digits":
        return local.load_digits()
    if kind == "swissroll":
        return swissroll.load()
    if kind in _REGISTERED:
        return registered.read(kind, _REGISTERED[kind][1], num_levels)
    from jvdm.data.prepared import load_published

    return load_published(kind, data_dir)


def data_spec(source: str, *, num_levels: int = 0, **options: Any) -> tuple[tuple[int, ...], int]:
    """The shape of an example and the number of levels; images are read only where these are unknown.

    Args:
        source, num_levels, options: as for `load`.

    Raises:
        UserError: as `load`, for `npz:` and `folder:`, whose images are read.
    """
    kind, _ = parse(source, num_levels)
    if kind in PUBLISHED:
        return PUBLISHED[kind].image_shape, 256
    dataset = load(source, num_levels=num_levels, **options)
    return dataset.data_shape, dataset.num_levels


def parse(source: str, num_levels: int) -> tuple[str, str]:
    """(kind, path) of a source, after a check that it exists and can have that number of levels.

    Raises:
        UserError: it does not, or cannot.
    """
    kind, colon, path = source.partition(":")
    if kind in ("npz", "folder"):
        if not path:
            argument = "FILE" if kind == "npz" else "DIR"
            raise UserError(f"data source {source!r} names no path; write {kind}:{argument}")
        return kind, path
    if colon or kind not in ("digits", "swissroll", *PUBLISHED, *_REGISTERED):
        raise unknown("data source", source, (*_LOCAL, *PUBLISHED, *_REGISTERED))
    if kind in _REGISTERED:
        return kind, ""
    if kind == "swissroll":
        if num_levels:
            raise UserError(
                f"data source 'swissroll' is continuous, so it has no {num_levels} levels: "
                "config.data.num_levels=0"
            )
        return kind, ""
    levels = local.DIGITS_LEVELS if kind == "digits" else 256
    if num_levels not in (0, levels):
        raise UserError(
            f"data source {kind!r} has {levels} levels, not {num_levels}: "
            f"config.data.num_levels=0 or {levels}"
        )
    return kind, ""
