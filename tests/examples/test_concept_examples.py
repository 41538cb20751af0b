"""If these fail, the numbers in the README of the concept LoRAs cannot be measured again, or sliders do not slide."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from drawing import draw_shape, shape_radius
from erased import report
from evaluate import drawn
from sampling import HERE, generate, load
from scoring import EmojiIndex
from slider import QUICKSTART, area

from tests import programs

PROMPTS = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("size", ["small", "", "big"])
def test_the_area_of_a_circle_is_that_of_geometry(size):
    expected = 100 * math.pi * shape_radius(size, "") ** 2 / 64**2
    assert area(draw_shape("red", "circle", "white", size)) == pytest.approx(expected, rel=0.03)


def test_what_is_erased_is_told_apart_from_what_is_lost():
    index, items = EmojiIndex(HERE / "reference"), PROMPTS["emoji"]
    _, images = drawn(PROMPTS, index)
    words = [item["word"] for item in items]
    assert "frog is number 1 of the nearest, frog the first; 39 of the 39" in report("", "frog", items, images, index)
    images[words.index("frog")] = images[words.index("gear")]  # another emoji, on another background
    images[words.index("pig")] = np.zeros_like(images[0])
    said = report("", "frog", items, images, index)
    assert "frog is number 1 of" not in said and "38 of the 39 others are right (97 percent)" in said


@pytest.mark.slow
def test_a_slider_of_a_minute_makes_shapes_bigger_and_smaller(tmp_path):
    """The example's, with fewer steps."""
    config = programs.ROOT / "examples" / "concept_loras" / "slider_config.toml"
    argv = ["--config_file", config, "--output_dir", tmp_path, "--logging_dir", tmp_path / "logs"]
    ended = programs.run(["train_leco.py", *argv, "--max_train_steps", "50", "--no_run_report"], cwd=programs.ROOT)
    assert ended.returncode == 0, ended.stderr[-3000:]
    items = [item for item in PROMPTS["shapes"] if not item["size"] and not item["position"]][:6]
    areas = []
    for multiplier in (-2, 0, 2):
        pipe = load(QUICKSTART / "base", "cpu", tmp_path / "size.safetensors", multiplier)
        images = generate(pipe, [item["prompt"] for item in items], [item["seed"] for item in items], 15, 4.0)
        areas.append(np.mean([area(image) for image in images]))
    assert areas[0] < 0.9 * areas[1] and areas[2] > 1.1 * areas[1], areas
