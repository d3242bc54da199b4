import matplotlib
import numpy as np
import pytest
from PIL import Image

from jvdm.core.errors import UserError
from jvdm.reporting import pixel_plots, plots


def run(num_lines, num_tests):
    """Metrics of a made-up run."""
    rng = np.random.default_rng(0)
    metrics = []
    for i in range(1, num_lines + 1):
        step, bpd = 50 * i, 2 + 8 * np.exp(-30 * i / num_lines) + 0.05 * rng.normal()
        record = {"train/bpd": bpd, "train/reconstruction": 0.01, "train/prior": 0.002}
        record |= {"train/diffusion": bpd - 0.012, "train/grad_norm": np.exp(rng.normal())}
        metrics.append({"step": step, "time": 0.0, "train/learning_rate": 2e-4, **record})
        if num_tests and i % (num_lines // num_tests) == 0:
            metrics.append({"step": step, "time": 0.0, "test/bpd": bpd, "test/diffusion": bpd})
    return metrics


def size(path):
    with Image.open(path) as picture:
        picture.load()
        assert "Software" not in picture.info
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
        return picture.size


DRAW = {
    "two lines": lambda path: plots.training_curves(run(2, 1), path),
    "many lines": lambda path: plots.training_curves(run(5_000, 40), path),
    "loss": lambda path: plots.loss_against_gamma(
        np.linspace(-13, 5, 300), np.arange(300) % 7 / 7, path, total=2.65
    ),
    "pixel schedules": lambda path: pixel_plots.pixel_schedules(
        np.linspace(0, 1, 5),
        np.random.default_rng(0).normal(size=(2, 5, 4, 4, 3)).cumsum(axis=1),
        [np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)],
        path,
    ),
    "schedule": lambda path: plots.schedule(np.linspace(0, 1, 50), np.linspace(-13, 5, 50) ** 3, path),
}


@pytest.mark.parametrize("name", DRAW)
def test_pictures_decode_and_their_bytes_depend_on_the_numbers_alone(tmp_path, name):
    before = dict(matplotlib.rcParams)
    DRAW[name](tmp_path / "a.png")
    DRAW[name](tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before
    width, height = size(tmp_path / "a.png")
    assert 600 <= width <= 2000
    assert 300 <= height <= 2000
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 1, "time": 0.0}],
        [{"step": 1, "time": 0.0, "test/bpd": 2.0}],
        [{"step": 1, "time": 0.0, "train/bpd": float("nan")}],
        [{"step": s, "time": 0.0, "train/bpd": b} for s, b in ((1, 2.0), (2, float("inf")), (3, 2.0))],
        [{"step": s, "time": 0.0, "validation/bpd": 2.0, "elsewhere/bpd": 3.0} for s in range(300)],
        [{"step": 1, "time": 0.0, "train/grad_norm": 0.0, "train/learning_rate": 0.0}],
    ],
)
def test_missing_and_non_finite_series_are_left_out(tmp_path, metrics):
    plots.training_curves(metrics, tmp_path / "curves.png")
    size(tmp_path / "curves.png")


def test_binned_mean_is_the_mean_with_its_standard_error():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-13, 5, 4000), rng.normal(2, 1, 4000)
    center, mean, error = plots._binned(x, y)
    assert len(center) == 40
    assert (np.diff(center) > 0).all()
    np.testing.assert_allclose(mean.mean(), y.mean())
    np.testing.assert_allclose(error, 0.1, rtol=0.25)
    assert (np.abs(mean - 2) < 4 * error).all()


@pytest.mark.parametrize("count", [0, 1, 2, 21])
def test_few_draws_are_drawn(tmp_path, count):
    plots.loss_against_gamma(np.zeros(count), np.zeros(count), tmp_path / "loss.png")
    size(tmp_path / "loss.png")


def test_constant_derivative_is_drawn_flat(tmp_path):
    t = np.linspace(0, 1, 100)
    plots.schedule(t, 18.3 * t - 13.3, tmp_path / "a.png", dgamma_dt=np.full(100, 18.3))
    plots.schedule(t, 18.3 * t - 13.3, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        difference = np.asarray(a.convert("L"), int) - np.asarray(b.convert("L"), int)
    assert np.abs(difference).max() < 16


def test_mismatched_arrays_are_refused(tmp_path):
    with pytest.raises(ValueError, match="gamma has 3 values"):
        plots.loss_against_gamma(np.zeros(3), np.zeros(4), tmp_path / "x.png")
    with pytest.raises(ValueError, match="expected t and gamma"):
        plots.schedule(np.zeros(3), np.zeros(4), tmp_path / "x.png")


def test_unwritable_place_is_a_user_error(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken is not a directory"):
        plots.training_curves([], tmp_path / "taken" / "curves.png")
