"""Without these images are cut or coloured otherwise than asked for, or by what was loaded before them."""

from __future__ import annotations

import colorsys
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.data.batches.items import draw_items
from library.data.batches.plan import TrainingData
from library.data.config.options import DatasetOptions
from library.data.images.augmentations import apply_colour, draw_colour, face_placement, random_placement
from library.data.images.face_names import Face
from library.data.load_data import load_training_data
from library.data.records import ColourShift, Item, LatentKey, Placement, StepCounter
from tests.data.image_files import save_image

CLOCK = StepCounter(group_size=1, steps_per_epoch=10, num_steps=100)


def test_colours_change_a_third_of_the_times_in_hue_or_in_gamma() -> None:
    shifts = [draw_colour(random.Random(number)) for number in range(6000)]
    changed = [shift for shift in shifts if shift is not None]
    assert abs(len(changed) - 2000) < 5 * math.sqrt(6000 * 2 / 9)
    gammas = [shift.gamma for shift in changed if shift.hue == 0 and shift.gamma != 1]
    assert abs(len(gammas) - len(changed) / 2) < 5 * math.sqrt(len(changed) / 4)
    assert 0.95 <= min(gammas) < 0.951 and 1.049 < max(gammas) <= 1.05
    hues = Counter(shift.hue for shift in changed if shift.gamma == 1)
    assert set(hues) == set(range(-8, 9))
    assert max(hues.values()) < 2 * min(hues.values())


@pytest.mark.parametrize("hue", [-8, -3, 5, 8])
def test_hues_turn_by_twice_as_many_degrees(hue: int) -> None:
    colours = [(255, 0, 0), (10, 200, 90), (200, 190, 20), (30, 30, 230), (250, 0, 60), (77, 77, 77), (0, 0, 0)]
    shifted = apply_colour(np.array([colours], np.uint8), ColourShift(hue=hue))[0]
    for before, after in zip(colours, shifted.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in before))
        expected = [255 * value for value in colorsys.hsv_to_rgb((h + 2 * hue / 360) % 1, s, v)]
        # hues are held in steps of two degrees, a thirtieth of the way from one primary to the next
        np.testing.assert_allclose(after, expected, atol=255 / 30 / 2 + 2)


def test_gamma_is_a_power_of_values_from_0_to_1() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    for gamma in (0.95, 1.05):
        expected = 255 * (np.arange(256) / 255) ** gamma
        np.testing.assert_allclose(apply_colour(values, ColourShift(gamma=gamma))[0, :, 0], expected, atol=0.51)
    np.testing.assert_array_equal(apply_colour(values, ColourShift()), values)


def test_a_random_window_can_lie_anywhere_in_the_image() -> None:
    placement = Placement((64, 64), (64, 67), (0, 1))
    drawn = Counter(random_placement(placement, random.Random(number)) for number in range(2000))
    assert {each.crop for each in drawn} == {(0, 0), (0, 1), (0, 2), (0, 3)}
    assert all((each.bucket, each.resized) == ((64, 64), (64, 67)) for each in drawn)
    assert all(abs(count - 500) < 5 * math.sqrt(2000 * 3 / 16) for count in drawn.values())


def _around(face: Face, number: int = 0, *, size=(1000, 800), bucket=(256, 256), crop_range=(2.0, 2.0), moved=False):
    return face_placement(size, bucket, face, crop_range=crop_range, rng=random.Random(number), also_random=moved)


def test_a_face_is_in_the_middle_and_as_large_as_asked_for() -> None:
    # 2 faces of 160 pixels make 320 pixels, which are resized to the 256 of the bucket: 0.8
    placement = _around(Face((500, 400), (100, 160)))
    assert placement == Placement((256, 256), (800, 640), (400 - 128, 320 - 128))
    tall = _around(Face((500, 400), (160, 120)), bucket=(256, 384))  # its short side counts
    assert tall == Placement((256, 384), (800, 640), (400 - 128, 320 - 192))


def test_a_window_stays_in_the_image() -> None:
    assert _around(Face((10, 790), (160, 160))).crop == (0, 640 - 256)
    assert _around(Face((999, 0), (160, 160))).crop == (800 - 256, 0)


def test_images_are_not_enlarged_for_small_faces_nor_made_too_small_for_large_ones() -> None:
    assert _around(Face((500, 400), (20, 20))).resized == (1000, 800)
    # 2 faces of 600 pixels would be 0.21 of the size, of which the bucket would see the border
    assert _around(Face((500, 400), (600, 600))).resized == (320, 256)
    # an image that is smaller than its bucket must be enlarged, and only as far as it must
    assert _around(Face((50, 40), (10, 10)), size=(100, 80)).resized == (320, 256)


def test_the_size_is_drawn_evenly_between_the_limits() -> None:
    face = Face((500, 400), (100, 100))
    in_faces = [256 / (100 * _around(face, number, crop_range=(3.0, 7.0)).resized[0] / 1000) for number in range(2000)]
    assert 3.0 - 0.02 <= min(in_faces) < 3.05 and 6.95 < max(in_faces) <= 7.02
    # the deviation of a uniform distribution of width 4 is 4 / sqrt(12)
    assert abs(np.mean(in_faces) - 5) < 5 * 4 / math.sqrt(12 * 2000)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_windows_around_faces_hold_their_centres(data, moved: bool) -> None:
    sides = st.integers(1, 3000)
    size = (data.draw(sides), data.draw(sides))
    bucket = (8 * data.draw(st.integers(1, 128)), 8 * data.draw(st.integers(1, 128)))
    centre = (data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1)))
    face = Face(centre, (data.draw(sides), data.draw(sides)))
    placement = _around(face, data.draw(st.integers()), size=size, bucket=bucket, crop_range=(0.5, 6.0), moved=moved)
    for axis in (0, 1):
        resized, first, length = placement.resized[axis], placement.crop[axis], bucket[axis]
        assert 0 <= first <= resized - length
        middle = (centre[axis] + 0.5) * resized / size[axis]
        assert first - 1e-6 <= middle <= first + length + 1e-6
    enlargement = max(resized / side for resized, side in zip(placement.resized, size, strict=True))
    needed = max(length / side for length, side in zip(bucket, size, strict=True))
    assert enlargement <= max(1, needed) + 1 / min(size)  # sides are whole numbers


def test_moved_windows_lie_all_around_the_face() -> None:
    face = Face((500, 400), (160, 160))
    crops = [_around(face, number, moved=True).crop for number in range(3000)]
    lefts, tops = zip(*crops, strict=True)
    # the face's centre, at (400, 320), can be the first and the last pixel of the window
    assert (min(lefts), max(lefts)) == (400 - 255, 400)
    assert (min(tops), max(tops)) == (320 - 255, 320)


TEXT = """
[[datasets]]
resolution = 64
batch_size = 4
[[datasets.subsets]]
image_dir = "{dir}/train"
class_tokens = "a, b, c, d, e, f"
num_repeats = 8
SETTINGS
"""


@pytest.fixture
def load(load_toml, make_images):
    """`load("random_crop = true")` -> training data of a subset with these settings."""

    def load(text: str) -> TrainingData:
        paths = make_images("train", 3, size=(160, 96))
        paths[0].rename(paths[0].with_name("0_40_50_30_20.png"))
        paths[1].rename(paths[1].with_name("1_400_50_30_20.png"))  # not in the image: no face
        return load_toml(TEXT.replace("SETTINGS", text))

    return load


def _items(data: TrainingData, epoch: int = 0, seed: int = 3) -> list[Item]:
    return [
        item for each in data.batches_of_epoch(seed, epoch) for item in draw_items(data.datasets[0], each, seed, CLOCK)
    ]


def _keys(data: TrainingData, start: str = "") -> list[LatentKey]:
    return [item.latent_key for item in _items(data) if item.latent_key.image_key.startswith(start)]


def test_random_crops_differ_from_use_to_use(load) -> None:
    placements = [key.placement for key in _keys(load("random_crop = true"))]
    assert {each.resized for each in placements} == {(107, 64)}
    assert len({each.crop for each in placements}) > 10
    assert {key.placement.crop for key in _keys(load(""))} == {(21, 0)}


def test_only_images_with_a_face_in_their_names_are_cut_around_it(load) -> None:
    data = load("face_crop_aug_range = [1.5, 3.0]")
    # 64 pixels are 1.5 to 3 faces of 30 pixels: the image is resized to 0.71 to 1
    sizes = [key.placement.resized for key in _keys(data, "0_")]
    assert len(set(sizes)) > 3 and min(sizes)[0] >= 113 and max(sizes)[0] <= 160
    for key in _keys(data, "0_"):
        (left, top), (width, _) = key.placement.crop, key.placement.resized
        assert abs(left + 32 - max(32, 40.5 * width / 160)) <= 1
        assert top + 64 <= key.placement.resized[1]
    for start in ("1_", "2"):
        assert {key.placement for key in _keys(data, start)} == {Placement((64, 64), (107, 64), (21, 0))}


def test_each_augmentation_draws_for_itself(load) -> None:
    """Switching one on must leave the others as they were: only so can runs with and without it be compared."""
    every = "flip_aug = true\nrandom_crop = true\ncolor_aug = true\nshuffle_caption = true"
    data = load(every)
    together = _items(data)
    assert _items(data, epoch=1) != together and _items(data, seed=4) != together
    for name, value_of in {
        "flip_aug": lambda item: item.latent_key.flipped,
        "random_crop": lambda item: item.latent_key.placement,
        "color_aug": lambda item: item.colour,
        "shuffle_caption": lambda item: item.caption,
    }.items():
        alone = _items(load(f"{name} = true"))
        assert [value_of(item) for item in alone] == [value_of(item) for item in together]
        assert len({str(value_of(item)) for item in alone}) > 1


def test_windows_and_mirroring_have_nothing_to_do_with_each_other(load) -> None:
    data = load("random_crop = true\nflip_aug = true")
    keys = [item.latent_key for epoch in range(40) for item in _items(data, epoch)]
    on_the_left = [key.flipped for key in keys if key.placement.crop[0] <= 21]  # of 0 to 43
    assert abs(sum(on_the_left) - len(on_the_left) / 2) < 5 * math.sqrt(len(on_the_left) / 4)
    assert abs(len(on_the_left) - len(keys) / 2) < 5 * math.sqrt(len(keys) / 4)


def test_warm_up_and_dropout_follow_the_steps_and_epochs_of_the_run(load) -> None:
    data = load("token_warmup_min = 1\ntoken_warmup_step = 5")
    lengths = [len(item.caption.split(", ")) for item in _items(data)]
    # 6 micro-batches of 4, a step each: 1 + floor(step * 5 / 5) tags
    assert lengths == [1 + step for step in range(6) for _ in range(4)]
    assert {len(item.caption.split(", ")) for item in _items(data, epoch=1)} == {6}
    every_other = load("caption_dropout_every_n_epochs = 2")
    empty = [all(item.caption == "" for item in _items(every_other, epoch)) for epoch in range(4)]
    assert empty == [False, True, False, True]


def test_images_without_a_face_in_their_names_are_said(tmp_path, caplog) -> None:
    folder = tmp_path / "1_x"
    for name in ("a_30_30_20_20", "b", "c_900_30_20_20"):
        save_image(folder / f"{name}.png", (64, 64))
    with caplog.at_level("WARNING"):
        load_training_data(
            DatasetOptions(train_data_dir=str(tmp_path), resolution=(64, 64), face_crop_aug_range=(2.0, 4.0))
        )
    (warning,) = [record.getMessage() for record in caplog.records if "face_crop_aug_range" in record.getMessage()]
    assert "no face in the names of 2 images" in warning and "b.png, c_900_30_20_20.png" in warning
