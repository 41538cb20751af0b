"""If these fail, a curve is drawn where its values are not."""

import re

import pytest

from library.run_report.charts import Line, make_chart, rate_lines, ticks, value_range


def test_a_line_runs_through_its_values():
    chart = make_chart("Loss", [Line("loss", "raw", [(0, 1.0), (50, 3.0), (100, 2.0)])], 100)
    shown = value_range([Line("loss", "raw", [(0, 1.0), (50, 3.0), (100, 2.0)])], robust=False)
    assert (shown.low, shown.high) == pytest.approx((0.9, 3.1))
    numbers = [float(number) for number in re.findall(r"[\d.]+", chart.paths[0].data)]
    xs, ys = numbers[::2], numbers[1::2]
    assert xs == [0, 500, 1000]
    assert ys == pytest.approx([1000 * (1 - (value - 0.9) / 2.2) for value in (1, 3, 2)], abs=0.06)


def test_a_single_outlier_does_not_flatten_the_loss():
    points = [(step, 0.1 + step % 7 / 100) for step in range(1, 501)] + [(501, 80.0)]
    assert value_range([Line("loss", "raw", points)], robust=True).high < 0.2
    assert value_range([Line("loss", "raw", points)], robust=False).high > 80


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.07, 0.19, ["0.08", "0.10", "0.12", "0.14", "0.16", "0.18"]),
        (0, 1.05e-6, ["0", "2e-07", "4e-07", "6e-07", "8e-07", "1e-06"]),
    ],
)
def test_ticks_are_round_numbers(low, high, texts):
    assert [text for _, text in ticks(low, high)] == texts


def test_steps_have_whole_ticks():
    assert [text for _, text in ticks(0, 3, whole=True)] == ["0", "1", "2", "3"]
    assert [text for _, text in ticks(0, 12_000, whole=True)] == [
        "0",
        "2,000",
        "4,000",
        "6,000",
        "8,000",
        "10,000",
        "12,000",
    ]


@pytest.mark.parametrize("points", [[(5, 0.0)], [(5, 2.0)], [(1, 1e-4), (9, 1e-4)]])
def test_a_constant_is_a_line_in_the_chart(points):
    chart = make_chart("Rate", [Line("rate", "hue0", points)], 9)
    ys = [float(number) for number in re.findall(r" ([\d.]+)", chart.paths[0].data)]
    assert all(0 < y <= 1000 for y in ys)


def test_parameter_groups_with_the_same_rates_share_a_line():
    same = [(1, 1e-4), (2, 2e-4)]
    lines = rate_lines({"loss": same, "lr/unet": same, "lr/textencoder": same, "lr/other": [(1, 1e-5)]})
    assert [line.name for line in lines] == ["unet, textencoder", "other"]


def test_many_epochs_are_marked_every_so_many():
    marks = [("epoch", step, "") for step in range(1, 1001)] + [("save", 500, "")]
    chart = make_chart("Loss", [Line("loss", "raw", [(1, 1.0), (1000, 2.0)])], 1000, marks)
    assert [mark.at for mark in chart.marks if mark.kind == "epoch"] == [step / 1000 for step in range(25, 1001, 25)]
    assert [mark.at for mark in chart.marks if mark.kind == "save"] == [0.5]
