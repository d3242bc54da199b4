import io

import pytest

from jvdm.core.progress import Progress, duration


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make(total, **options):
    clock, stream = Clock(), io.StringIO()
    return clock, stream, Progress(total, label="train", stream=stream, clock=clock, **options)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (99, "1m39s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
        (86399, "1d00h"),
        (273600, "3d04h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_lines_hold_count_rate_time_left_and_values():
    clock, stream, progress = make(5000)
    clock.now += 60  # compilation
    progress.update(1, bpd=8.0)
    clock.now += 5
    progress.update(101, bpd=3.0)
    clock.now += 5
    progress.update(201, bpd=2.0134)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "train  1/5000 step  0%  bpd 8",
        "train  201/5000 step  4%  20 step/s  4m00s left  bpd 2.013",
        "train  201/5000 step  4%  20 step/s  took 1m10s  bpd 2.013",
    ]


def test_at_most_one_line_per_interval():
    clock, stream, progress = make(100_000, interval_s=10.0)
    for done in range(1, 10_001):
        clock.now += 0.01
        progress.update(done)
    assert len(stream.getvalue().splitlines()) == 10  # at the first update and then after 10, 20, ... 90 s
    assert len(progress._samples) < 60


def test_rate_is_that_of_the_recent_window():
    clock, stream, progress = make(10_000, interval_s=10.0)
    done = 0
    for rate, seconds in ((100, 20), (10, 60)):
        for _ in range(seconds):
            clock.now += 1
            done += rate
            progress.update(done)
    progress.close()
    assert "  10 step/s  " in stream.getvalue().splitlines()[-2]


def test_slow_steps_keep_their_decimals():
    clock, stream, progress = make(10, interval_s=1.0)
    for done in (1, 2, 3):
        clock.now += 5.4
        progress.update(done)
    assert stream.getvalue().splitlines()[-1] == "train  3/10 step  30%  0.185 step/s  38s left"


def test_resumed_work_counts_only_its_own_part():
    clock, stream, progress = make(1000, initial=900)
    clock.now += 10
    progress.update(920)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "train  920/1000 step  92%",
        "train  920/1000 step  92%  2 step/s  took 10s",
    ]


def test_values_stay_until_replaced():
    clock, stream, progress = make(4, interval_s=0.0)
    progress.update(1, bpd=2.5, lr=2e-4)
    clock.now += 1
    progress.update(2, bpd=2.25)
    assert stream.getvalue().splitlines()[-1].endswith("bpd 2.25  lr 0.0002")


def test_no_work_and_no_update_are_fine():
    _, stream, progress = make(0)
    progress.close()
    progress.close()
    assert stream.getvalue() == "train  0/0 step  100%  took 0s\n"


def test_context_manager_closes_on_failure():
    stream = io.StringIO()
    progress = Progress(3, label="eval", unit="image", stream=stream)

    def work():
        with progress:
            progress.update(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert stream.getvalue().splitlines()[-1].startswith("eval  1/3 image  33%")


def test_stderr_is_the_default(capsys):
    with Progress(1, label="sample") as progress:
        progress.update(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sample  1/1 step  100%")


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with Progress(50, initial=10, label="train", stream=stream) as progress:
        for done in range(11, 51):
            progress.update(done, bpd=2.0134)
    last = stream.getvalue().split("\r")[-1]
    assert "train: 100%" in last
    assert "50/50" in last
    assert "bpd=2.013" in last
