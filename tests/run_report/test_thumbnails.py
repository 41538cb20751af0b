"""If these fail, a page grows beyond what a browser or a mail takes, or lacks the base model's image."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from library.run_report.record import SampleRow
from library.run_report.thumbnails import SampleGrid, Thumbnails, spread


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Three prompts in twenty rounds, of noise, which compresses worst; one file is missing."""
    folder, files = tmp_path_factory.mktemp("samples"), {}
    for row in range(3):
        for step in range(0, 200, 10):
            pixels = np.random.RandomState(row * 1000 + step).randint(0, 256, (96, 64, 3), dtype=np.uint8)
            files[row, step] = folder / f"{row}-{step}.png"
            Image.fromarray(pixels).save(files[row, step])
    files[1, 0].unlink()
    rows = [SampleRow(f"prompt {row}", "", "") for row in range(3)]
    return SampleGrid(rows, [(step, f"step {step}") for step in range(0, 200, 10)], files)


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


def test_rounds_are_thinned_out_from_the_first_to_the_last(grid):
    shown = Thumbnails().shown(grid)
    steps = [step for step, _ in shown.rounds]
    assert len(steps) == 16 and steps[0] == 0 and steps[-1] == 190 and (shown.num_rounds, shown.num_rows) == (20, 3)
    assert set(shown.images) == {(row, step) for row in range(3) for step in steps} - {(1, 0)}
    assert opened(shown.images[2, 190]).size == (64, 96)


@pytest.mark.parametrize("budget", [100_000, 40_000, 5_000, 0])
def test_what_does_not_fit_gets_smaller_first_and_then_fewer(grid, budget):
    thumbnails = Thumbnails(budget)
    shown = thumbnails.shown(grid)
    assert sum(map(len, shown.images.values())) <= budget
    if budget >= 40_000:
        assert len(shown.rows) == 3 and shown.rounds[0][0] == 0 and shown.rounds[-1][0] == 190
    assert thumbnails.shown(grid) == shown


@pytest.mark.parametrize(("number", "most", "expected"), [(3, 5, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (9, 1, [8])])
def test_spread(number, most, expected):
    assert spread(number, most) == expected
