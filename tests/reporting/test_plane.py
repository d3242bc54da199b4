"""Pictures of data in the plane: they are written, and show the numbers."""

import numpy as np
from PIL import Image

from jvdm.reporting import images, plane


def test_points_are_drawn_where_they_are():
    rng = np.random.default_rng(0)
    one = plane.points(rng.normal(size=(500, 2)))
    other = plane.points(rng.normal(size=(500, 2)) * [1.0, 0.01])
    assert one.dtype == np.uint8 and one.ndim == 3 and one.shape[2] == 3
    # Points on a line colour fewer rows than points of a disc.
    rows = [np.any(np.ptp(picture[:, 100:-100], axis=1) > 60, axis=-1).sum() for picture in (one, other)]
    assert rows[0] > 2 * rows[1]


def test_picture_of_samples():
    points = np.zeros((4, 1, 1, 2), np.float32)
    assert images.picture(points, 0) is not None
    assert images.picture(np.zeros((4, 1, 1, 3), np.float32), 0) is None
    assert images.picture(np.zeros((4, 8, 8, 1), np.uint8), 17).shape[2] == 3


def test_densities_and_trajectories(tmp_path):
    axis = np.linspace(-2, 2, 20)
    log_p = -0.5 * (axis[:, None] ** 2 + axis**2)
    plane.densities({"model": log_p, "truth": log_p}, 2.0, tmp_path / "density.png")
    z = np.cumsum(np.random.default_rng(0).normal(size=(11, 30, 2)), axis=0)
    plane.trajectories({"one": z, "two": z}, tmp_path / "paths.png")
    for name in ("density", "paths"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert np.ptp(np.asarray(picture)) == 255
