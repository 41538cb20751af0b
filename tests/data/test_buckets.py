"""Without these an image is trained at another size, or cut elsewhere, than users of the format expect."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.cli.errors import UserError
from library.data.buckets import (
    BucketChooser,
    BucketSettings,
    aspect_error,
    bucket_resolutions,
    centre_crop,
    crop_ltrb,
)
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data

REFERENCE = json.loads((Path(__file__).parent / "bucket_reference.json").read_text(encoding="utf-8"))


def _settings(case: dict) -> BucketSettings:
    return BucketSettings(**{**case["setting"], "resolution": tuple(case["setting"]["resolution"])})


def _name(case: dict) -> str:
    return "-".join(str(value) for value in case["setting"].values())


def _check_row(chooser: BucketChooser, row: list) -> None:
    placement = chooser.assign((row[0], row[1]))
    error = aspect_error((row[0], row[1]), placement.bucket)
    assert [*placement.bucket, *placement.resized, error] == row[2:], row[:2]


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=_name)
def test_buckets_are_those_of_the_reference(case: dict) -> None:
    chosen = _settings(case)
    if "error" in case:
        assert list(chosen.problems("--"))
        return
    assert not list(chosen.problems("--"))
    assert [list(size) for size in bucket_resolutions(chosen)] == (case["resolutions"] or [])
    chooser = BucketChooser(chosen)
    for row in case["images"]:
        _check_row(chooser, row)
    for size in case["too_small"]:
        placement = chooser.assign(tuple(size))
        assert min(placement.bucket) >= chosen.bucket_reso_steps
        assert all(side % chosen.bucket_reso_steps == 0 for side in placement.bucket)


@pytest.mark.parametrize("case", REFERENCE["fixed_size"], ids=lambda case: str(case["resolution"]))
def test_without_buckets_every_image_gets_the_resolution(case: dict) -> None:
    chooser = BucketChooser(BucketSettings(tuple(case["resolution"]), enable_bucket=False))
    for row in case["images"]:
        _check_row(chooser, row)


def test_crops_are_those_of_the_reference() -> None:
    for case in REFERENCE["centre_crop"]:
        assert list(centre_crop(case["resized"], case["bucket"])) == case["kept_left_top"]
    for case in REFERENCE["crop_ltrb"]:
        assert list(crop_ltrb(tuple(case["bucket"]), tuple(case["image"]))) == case["crop_ltrb"]


@pytest.mark.parametrize(
    ("image", "steps", "bucket"),
    [
        ((1, 1), 64, (64, 64)),
        ((64, 1), 64, (4096, 64)),
        ((1, 64), 8, (8, 512)),
        ((63, 65), 64, (64, 64)),
        ((1000, 100), 128, (1280, 128)),
        ((100000, 3), 64, (4096, 64)),
    ],
)
def test_a_image_thinner_than_a_step_gets_the_smallest_bucket_of_its_aspect(image, steps, bucket) -> None:
    chosen = BucketSettings((512, 512), bucket_reso_steps=steps, bucket_no_upscale=True)
    assert BucketChooser(chosen).assign(image).bucket == bucket


side = st.integers(1, 6000)
steps_and_resolution = st.sampled_from([8, 16, 32, 64]).flatmap(
    lambda steps: st.tuples(st.just(steps), st.integers(steps, 1024), st.integers(steps, 1024))
)


@settings(max_examples=300, deadline=None)
@given(side, side, steps_and_resolution, st.booleans())
def test_every_size_gets_a_bucket_of_whole_steps_within_the_area(width, height, sizes, no_upscale) -> None:
    steps, *resolution = sizes
    chosen = BucketSettings(tuple(resolution), True, steps, 1024, steps, no_upscale)
    assert not list(chosen.problems("--"))
    placement = BucketChooser(chosen).assign((width, height))
    bucket_width, bucket_height = placement.bucket
    assert bucket_width % steps == bucket_height % steps == 0
    assert min(placement.bucket) >= steps
    # the reference rounds sides made from an image's own size, so that they can be a pixel over
    rounding = 2 * (bucket_width + bucket_height) if no_upscale else 0
    assert bucket_width * bucket_height <= chosen.max_area + rounding
    left, top = placement.crop
    assert left >= 0 and left + bucket_width <= placement.resized[0]
    assert top >= 0 and top + bucket_height <= placement.resized[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"min_bucket_reso": 1280}, "min_bucket_reso 1280 is larger than max_bucket_reso 1024"),
        ({"max_bucket_reso": 256}, "max_bucket_reso 256 is smaller than resolution"),
        ({"min_bucket_reso": 32}, "min_bucket_reso 32 is smaller than bucket_reso_steps"),
        ({"max_bucket_reso": 10**18}, "max_bucket_reso 1000000000000000000 is too large"),
        ({"resolution": (10**18, 8), "enable_bucket": False}, "resolution 1000000000000000000x8 is too large"),
        ({"bucket_reso_steps": 12}, "bucket_reso_steps 12 is not a multiple of 8"),
        ({"resolution": (500, 512), "enable_bucket": False}, "resolution 500x512 is not a multiple of 8"),
    ],
)
def test_settings_that_contradict_each_other_are_named(changes: dict, named: str) -> None:
    chosen = BucketSettings(**{"resolution": (512, 512), **changes})
    assert any(named in error.message and error.hint for error in chosen.problems("datasets[0]."))


STEPS = """
[general]
enable_bucket = true
min_bucket_reso = 32
{general}
[[datasets]]
resolution = 64
{dataset}
[[datasets.subsets]]
image_dir = '{{dir}}/a'
[[datasets]]
resolution = 96
[[datasets.subsets]]
image_dir = '{{dir}}/a'
"""


@pytest.mark.parametrize(
    ("general", "dataset", "flag", "steps", "warned"),
    [
        ("bucket_reso_steps = 1", "", 64, [8, 8], ["general.bucket_reso_steps 1"]),
        ("", "bucket_reso_steps = 7", 16, [8, 16], ["datasets[0].bucket_reso_steps 7"]),
        ("", "", 1, [8, 8], ["--bucket_reso_steps 1"]),
        (
            "bucket_reso_steps = 2",
            "bucket_reso_steps = 1.0",
            64,
            [8, 8],
            ["general.bucket_reso_steps 2", "datasets[0].bucket_reso_steps 1"],
        ),
        ("bucket_reso_steps = 8", "bucket_reso_steps = 16", 64, [16, 8], []),
    ],
)
def test_bucket_steps_below_8_are_8_with_one_warning_for_each_place(
    load_toml, make_images, caplog, general: str, dataset: str, flag: int, steps: list[int], warned: list[str]
) -> None:
    """An image of 72x56 has a bucket of its own where steps are 8, and none where they are 16."""
    make_images("a", 1, size=(72, 56), caption="x")
    with caplog.at_level(logging.WARNING):
        data = load_toml(STEPS.format(general=general, dataset=dataset), bucket_reso_steps=flag)
    assert [each.config.bucket_reso_steps for each in data.datasets] == steps
    assert ((72, 56) in data.datasets[0].bucket_counts) == (steps[0] == 8)
    assert caplog.messages == [
        f"{each}: using 8, the sides of training images must be multiples of it" for each in warned
    ]


def test_bucket_steps_below_8_on_the_command_line(make_images, tmp_path: Path, caplog) -> None:
    make_images("train/1_cat", 1, size=(72, 56))
    file = tmp_path / "meta.json"
    file.write_text('{"train/1_cat/0.png": {"caption": "x"}}')
    buckets = {"resolution": (64, 64), "enable_bucket": True, "min_bucket_reso": 32, "bucket_reso_steps": 1}
    for source in ({"train_data_dir": str(tmp_path / "train")}, {"in_json": str(file)}):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            data = load_training_data(DatasetOptions(**source, **buckets))
        assert data.datasets[0].bucket_counts == {(72, 56): 1}
        assert [each.split(":")[0] for each in caplog.messages] == ["--bucket_reso_steps 1"]
    with pytest.raises(UserError, match="--bucket_reso_steps 12 is not a multiple of 8"):
        load_training_data(DatasetOptions(**source, **{**buckets, "bucket_reso_steps": 12}))
