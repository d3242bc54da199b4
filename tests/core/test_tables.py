import pytest

from jvdm.core.tables import difference_text, table, with_error


def test_table_is_aligned_markdown():
    rows = [
        {"config": "digits", "bits/dim": "1.9871 ± 0.0123", "images": "297"},
        {"config": "cifar10", "bits/dim": "≤ 2.65", "note": "published"},
    ]
    assert table(rows) == "\n".join(
        [
            "| config  |        bits/dim | images | note      |",
            "| ------- | --------------: | -----: | --------- |",
            "| digits  | 1.9871 ± 0.0123 |    297 |           |",
            "| cifar10 |          ≤ 2.65 |        | published |",
        ]
    )


def test_columns_choose_and_order():
    assert table([{"a": "1", "b": "x"}], columns=["b", "a"]).splitlines()[2] == "| x   |   1 |"


def test_words_that_begin_with_a_digit_are_no_numbers():
    assert table([{"a": "8×8 digits"}]).splitlines()[1] == "| ---------- |"


def test_pipes_and_line_breaks_stay_in_their_cell():
    assert table([{"a": "x|y\nz"}]).splitlines()[2] == r"| x\|y z |"


def test_empty_tables():
    assert table([]) == ""
    assert table([], columns=["a"]).splitlines() == ["| a   |", "| --- |"]


@pytest.mark.parametrize(
    ("value", "error", "digits", "text"),
    [
        (2.01342, 0.00214, 4, "2.0134 ± 0.0021"),
        (2.01342, 0.00214, 2, "2.01 ± <0.01"),
        (-1.0, 0.0, 3, "-1.000 ± 0.000"),
        (2.0, 1e-9, 4, "2.0000 ± <0.0001"),
        (2.0, float("nan"), 4, "2.0000 ± nan"),
    ],
)
def test_with_error(value, error, digits, text):
    assert with_error(value, error, digits) == text
    assert table([{"a": text}]).splitlines()[1].endswith(": |")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(0.0011, 0.0004, "+0.0011 ± 0.0004"), (-0.0011, None, "-0.0011"), (0.0, 0.0, "+0.0000 ± 0.0000")],
)
def test_difference(value, error, text):
    assert difference_text(value, error) == text
