"""Without these a picture is trained at another size, or cut elsewhere, than users of the format expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.data.buckets import (
    BucketChooser,
    BucketSettings,
    aspect_error,
    bucket_resolutions,
    centre_crop,
    crop_ltrb,
)

REFERENCE = json.loads((Path(__file__).parent / "bucket_reference.json").read_text(encoding="utf-8"))


def _settings(case: dict) -> BucketSettings:
    return BucketSettings(**{**case["setting"], "resolution": tuple(case["setting"]["resolution"])})


def _name(case: dict) -> str:
    return "-".join(str(value) for value in case["setting"].values())


def _check_row(chooser: BucketChooser, row: list) -> None:
    placement = chooser.place((row[0], row[1]))
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
        placement = chooser.place(tuple(size))
        assert min(placement.bucket) >= chosen.bucket_reso_steps
        assert all(side % chosen.bucket_reso_steps == 0 for side in placement.bucket)


@pytest.mark.parametrize("case", REFERENCE["fixed_size"], ids=lambda case: str(case["resolution"]))
def test_without_buckets_every_picture_gets_the_resolution(case: dict) -> None:
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
def test_a_picture_thinner_than_a_step_gets_the_smallest_bucket_of_its_aspect(image, steps, bucket) -> None:
    chosen = BucketSettings((512, 512), bucket_reso_steps=steps, bucket_no_upscale=True)
    assert BucketChooser(chosen).place(image).bucket == bucket


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
    placement = BucketChooser(chosen).place((width, height))
    bucket_width, bucket_height = placement.bucket
    assert bucket_width % steps == bucket_height % steps == 0
    assert min(placement.bucket) >= steps
    # the reference rounds sides made from a picture's own size, so that they can be a pixel over
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
