"""Series of metrics, the axis that shows them and the points that are drawn."""

import numpy as np
import pytest

from jvdm.reporting import charts, curves


def series(values):
    values = np.asarray(values, float)
    return curves.Series(steps=10.0 * np.arange(len(values)), values=values)


def test_series_are_sorted_and_finite():
    lines = [
        {"step": 20, "time": 0.0, "train/grad_norm": 1.0, "train/bpd": float("nan"), "test/bpd": 2.0},
        {"step": 10, "time": 0.0, "train/bpd": 3.0, "test/bpd": 4.0, "train/diffusion": 1e200},
    ]
    found = curves.read(lines)
    assert list(found) == ["bpd", "diffusion", "grad_norm"] and list(found["bpd"]) == ["train", "test"]
    assert found["bpd"]["test"].steps.tolist() == [10, 20]
    assert found["bpd"]["test"].values.tolist() == [4, 2]
    assert found["bpd"]["train"].values.tolist() == [3] and found["bpd"]["train"].num_dropped == 1
    assert found["diffusion"]["train"].num_dropped == 1 and not len(found["diffusion"]["train"].values)


def test_value_axis():
    """The first tenth and rare spikes of the longest series do not count; every value of a short one does."""
    falling = np.concatenate([np.linspace(100, 5, 100), np.linspace(3, 2, 901)])
    falling[700] = 50.0
    axis = curves.value_axis([series(falling), series([2.5, 4.0])], "bpd")
    assert (axis.low, axis.high, axis.logarithmic) == (pytest.approx(1.88), pytest.approx(4.12), False)
    assert curves.value_axis([series(falling)], "bpd").high < 3.1
    axis = curves.value_axis([series([0.5, 50.0])], "grad_norm")
    assert axis.logarithmic and axis.low < 0.5 and axis.high > 50
    assert not curves.value_axis([series([0.0, 50.0])], "grad_norm").logarithmic
    assert curves.value_axis([series([1e-3, 2e-3])], "learning_rate") == curves.Axis(0.0, 1.06 * 2e-3)
    assert curves.value_axis([series([2.0])], "bpd") == curves.Axis(1.9, 2.1)


def test_drawing():
    """Few points are marked; many have a running mean over their extremes; what is set is drawn as it is."""
    few = curves.drawing(series(np.arange(curves.FEW_POINTS)), "bpd", max_points=100)
    assert few.has_dots and few.noise is None and len(few.line[0]) == curves.FEW_POINTS
    many = curves.drawing(series(np.arange(10_000) % 2), "bpd", max_points=100)
    assert not many.has_dots and len(many.line[0]) == len(many.noise[0]) == 100
    np.testing.assert_allclose(many.line[1][10:], 0.5, atol=0.01)
    exact = curves.drawing(series(np.arange(10_000) % 2), "learning_rate", max_points=10_000)
    assert exact.noise is None and set(exact.line[1]) == {0.0, 1.0}


def test_spikes_survive():
    steps, values = np.arange(100_000.0), np.zeros(100_000)
    values[54_321], values[77_777] = 5.0, -3.0
    thin_steps, thin = curves.outline(steps, values, charts.MAX_POINTS)
    assert len(thin) <= charts.MAX_POINTS and (thin.max(), thin.min()) == (5.0, -3.0)
    assert (np.diff(thin_steps) > 0).all() and 54_321 in thin_steps


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (1.9, 5.1, ["2", "3", "4", "5"]),
        (-0.004, 0.0072, ["-0.0025", "0.0000", "0.0025", "0.0050"]),
        (0.0, 1.1e-5, ["0", "2.5e-6", "5e-6", "7.5e-6", "1e-5"]),
        (0.0, 11_000.0, ["0", "2,500", "5,000", "7,500", "10,000"]),
    ],
)
def test_ticks(low, high, labels):
    axis = curves.Axis(low, high)
    assert axis.labels(axis.ticks(5)) == labels


def test_logarithmic_axis():
    axis = curves.Axis(0.5, 200.0, logarithmic=True)
    assert axis.ticks(5) == [1.0, 10.0, 100.0]
    np.testing.assert_allclose([axis.place(0.5), axis.place(10.0), axis.place(200.0)], [0.0, 0.5, 1.0])


def test_running_mean_follows_a_line_and_flattens_noise():
    line = np.arange(1000.0)
    np.testing.assert_allclose(curves.running_mean(line, 20)[20:-20], line[20:-20])
    noise = np.random.default_rng(0).normal(size=10_000)
    assert curves.running_mean(noise, 200)[1000:].std() < 0.1
    np.testing.assert_allclose(curves.running_mean(np.full(7, 3.0), 2), 3.0)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (2500, "2500"), (2e4, "20k"), (1.5e6, "1.5M")])
def test_step_labels(value, text):
    assert curves.step_label(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (2e-4, "2e-4"), (1.5e-4, "1.5e-4"), (1, "1e0")])
def test_power_labels(value, text):
    assert curves.power_label(value) == text
