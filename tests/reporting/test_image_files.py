import numpy as np
import pytest
from PIL import Image

from jvdm.core import files
from jvdm.core.errors import UserError
from jvdm.reporting import images


def noise(*shape, num_levels=256):
    return np.random.default_rng(0).integers(0, num_levels, shape).astype(np.uint8)


def test_grid_places_every_pixel():
    batch = noise(5, 20, 18, 3)
    picture = images.grid(batch, columns=3, pad=2)
    assert picture.shape == (2 + 2 * 22, 2 + 3 * 20, 3)
    covered = np.zeros(picture.shape[:2], bool)
    for i, image in enumerate(batch):
        top, left = 2 + 22 * (i // 3), 2 + 20 * (i % 3)
        np.testing.assert_array_equal(picture[top : top + 20, left : left + 18], image)
        covered[top : top + 20, left : left + 18] = True
    assert (picture[~covered] == 255).all()


def test_levels_are_stretched_to_the_full_range():
    batch = np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1).repeat(20, 1).repeat(20, 2)
    picture = images.grid(batch, num_levels=17, columns=17, pad=0)
    np.testing.assert_array_equal(picture[0, ::20, 0], np.rint(np.arange(17) * 255 / 16))
    assert picture[0, -1].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(images.grid(noise(1, 20, 20, 1), pad=0)[:, :, :1], noise(1, 20, 20, 1)[0])


@pytest.mark.parametrize(("height", "factor"), [(1, 48), (8, 6), (16, 3), (17, 1), (32, 1)])
def test_small_images_are_enlarged_without_blur(height, factor):
    batch = noise(1, height, height, 1)
    picture = images.grid(batch, pad=0)
    assert picture.shape == (height * factor, height * factor, 3)
    np.testing.assert_array_equal(picture[::factor, ::factor, 1], batch[0, :, :, 0])
    np.testing.assert_array_equal(picture[factor - 1 :: factor, factor - 1 :: factor, 1], batch[0, :, :, 0])


@pytest.mark.parametrize(
    ("shape", "size"), [((64, 32, 32, 3), (8, 8)), ((60, 8, 8, 1), (8, 8)), ((1, 32, 32, 1), (1, 1))]
)
def test_grid_is_about_square(shape, size):
    side = 48 if shape[1] == 8 else shape[1]
    picture = images.grid(noise(*shape), pad=2)
    assert picture.shape == (2 + size[0] * (side + 2), 2 + size[1] * (side + 2), 3)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "expected uint8"),
        (np.zeros((4, 4, 3), np.uint8), "expected uint8"),
        (np.zeros((0, 4, 4, 1), np.uint8), "expected uint8"),
        (np.full((1, 4, 4, 1), 17, np.uint8), "largest value is 17, num_levels is 17"),
    ],
)
def test_grid_refuses_what_is_not_images(batch, message):
    with pytest.raises(ValueError, match=message):
        images.grid(batch, num_levels=17)


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7, 1), (5, 7)])
def test_png_round_trips(tmp_path, shape):
    image = noise(*shape)
    images.write_png(tmp_path / "new" / "image.png", image)
    with Image.open(tmp_path / "new" / "image.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), image.reshape(np.asarray(picture).shape))


def test_npz_is_one_unnamed_uint8_array(tmp_path):
    batch = noise(3, 8, 8, 1)
    path = tmp_path / "samples_3x8x8x1.npz"
    images.write_npz(path, batch)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with np.load(path) as stored:
        assert stored.files == ["arr_0"]
        assert stored["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(stored["arr_0"], batch)


@pytest.mark.parametrize("write", [images.write_png, images.write_npz])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, write):
    path, image = tmp_path / "out", noise(4, 8, 8, 3)
    image = image if write is images.write_npz else image[0]
    write(path, image)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, name, fail)
            with pytest.raises(UserError, match="out: No space left on device"):
                write(path, 255 - image)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_disk_that_fills_while_writing_is_a_user_error(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"samples\.npz: File too large"):
            images.write_npz(tmp_path / "samples.npz", noise(100, 32, 32, 3))
        with pytest.raises(UserError, match=r"grid\.png: File too large"):
            images.write_png(tmp_path / "grid.png", noise(500, 500, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_directory_that_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken is not a directory"):
        images.write_png(tmp_path / "taken" / "grid.png", noise(4, 4, 3))


@pytest.mark.parametrize("channels", [2, 4])
def test_grid_of_other_channels_shows_each_in_gray(channels):
    image = np.arange(channels, dtype=np.uint8).reshape(1, 1, 1, channels).repeat(20, 1).repeat(20, 2)
    picture = images.grid(image, num_levels=channels, pad=0)
    assert picture.shape == (20, 20 * channels, 3)
    expected = np.rint(np.arange(channels) * 255 / (channels - 1))
    np.testing.assert_array_equal(picture[0, ::20, 0], expected)
