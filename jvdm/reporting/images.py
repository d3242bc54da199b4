"""Images as picture files and as arrays."""

import math
import os

import numpy as np

from jvdm.core.files import write_arrays, write_atomically

_BACKGROUND = 255  # white: most data sets have dark borders, which black padding would join


def grid(
    images: np.ndarray, *, num_levels: int = 256, columns: int | None = None, pad: int = 2
) -> np.ndarray:
    """Lays images out in rows, as one picture for people.

    Args:
        images: uint8 [N, H, W, C] with values 0..num_levels-1, C 3 for colours. With
            any other C the channels are shown in gray, side by side.
        num_levels: number of values of the data; they are stretched to 0..255.
        columns: images per row; by default the picture is about square.
        pad: white pixels around every image.

    Returns:
        uint8 [height, width, 3]. Images of at most 16 rows are enlarged by the smallest integer that gives
        them 48 rows. Cells without an image are white.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected uint8 [N, H, W, C], got {images.dtype} {list(images.shape)}")
    if not 2 <= num_levels <= 256 or int(images.max()) >= num_levels:
        raise ValueError(f"the largest value is {int(images.max())}, num_levels is {num_levels}")
    stretched = np.rint(np.arange(256) * 255.0 / (num_levels - 1)).clip(0, 255).astype(np.uint8)[images]
    if stretched.shape[3] != 3:
        stretched = np.concatenate(np.split(stretched, stretched.shape[3], axis=3), axis=2).repeat(3, axis=3)
    if stretched.shape[1] <= 16:
        factor = math.ceil(48 / stretched.shape[1])
        stretched = stretched.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = stretched.shape
    if columns is None:
        columns = math.ceil(math.sqrt(count * (height + pad) / (width + pad)))
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    cells = np.full((rows * columns, height + pad, width + pad, 3), _BACKGROUND, np.uint8)
    cells[:count, :height, :width] = stretched
    cells = cells.reshape(rows, columns, height + pad, width + pad, 3).transpose(0, 2, 1, 3, 4)
    picture = cells.reshape(rows * (height + pad), columns * (width + pad), 3)
    return np.pad(picture, ((pad, 0), (pad, 0), (0, 0)), constant_values=_BACKGROUND)


def picture(samples: np.ndarray, num_levels: int) -> np.ndarray | None:
    """Draw samples as one picture, uint8 [height, width, 3].

    Args:
        samples: uint8 [N, *data_shape], or float32 of continuous data (num_levels 0).
        num_levels: as in `grid`; 0 for continuous data.

    Returns:
        A grid of images, a scatter plot of points in the plane, or None for other data.
    """
    if num_levels and samples.ndim == 4:
        return grid(samples, num_levels=num_levels)
    if not num_levels and samples[0].size == 2:
        from jvdm.reporting import plane

        return plane.points(samples)
    return None


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write one image as PNG, whole or not at all.

    Args:
        path: the file.
        image: uint8 [H, W, 3], [H, W, 1] or [H, W].

    Raises:
        UserError: the file cannot be written.
    """
    from PIL import Image

    image = np.asarray(image)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))):
        raise ValueError(f"expected uint8 [H, W] or [H, W, 1 or 3], got {image.dtype} {list(image.shape)}")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    picture = Image.fromarray(image)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def write_npz(path: str | os.PathLike[str], images: np.ndarray, **more: np.ndarray) -> None:
    """Write images as the `.npz` that sample evaluators read: one unnamed array, `arr_0`.

    Args:
        path: the file.
        images: uint8 [N, *data_shape], or float32 of continuous data.
        **more: further arrays by name.

    Raises:
        UserError: the file cannot be written.
    """
    images = np.asarray(images)
    if images.dtype not in (np.uint8, np.float32) or images.ndim < 1:
        raise ValueError(f"expected uint8 or float32 [N, ...], got {images.dtype} {list(images.shape)}")
    write_arrays(path, images, **more)
