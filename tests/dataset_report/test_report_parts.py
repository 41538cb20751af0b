"""The parts of the report that a page hides: where a caption is cut, what looks alike, the window."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from library.cli.errors import UserError
from library.data.records import StepCounter
from library.dataset_report.caption_length import TokenLimit, measure_caption
from library.dataset_report.duplicates import grey_thumbnail, near_duplicates
from library.dataset_report.rendering import longest_side
from library.dataset_report.sampled_items import DrawSettings, ImageId, choose_images
from library.dataset_report.window import open_window, step_through

# each letter of a word is a token, as about in Japanese; a space is none
LETTERS = TokenLimit(lambda text: len(text.replace(" ", "")), limit=10)


@pytest.mark.parametrize(
    ("caption", "num_tokens", "read"),
    [
        ("", 0, ""),
        ("ten tokens!", 10, "ten tokens!"),
        ("a cat sits here", 12, "a cat sits"),
        ("a cat, redder", 11, "a cat,"),
        ("word" * 20, 80, "word" * 2 + "wo"),  # no place to cut: a text without spaces
        ("ab " + "word" * 20, 82, "ab " + "word" * 2),
        ("unbreakable x", 12, ""),  # of an ordinary word, no part is shown as read
    ],
)
def test_a_caption_is_cut_behind_the_last_word_that_is_read(caption, num_tokens, read):
    length = measure_caption(caption, LETTERS)
    assert (length.num_tokens, caption[: length.kept]) == (num_tokens, read)


def test_the_same_image_is_known_after_resizing_and_saving_again_but_not_another_one():
    rng = np.random.RandomState(0)
    images = [Image.fromarray(rng.randint(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(40)]
    large = [image.resize((160, 120), Image.Resampling.BICUBIC) for image in images]
    again = large[7].resize((300, 225), Image.Resampling.LANCZOS)
    flat = [Image.new("RGB", (64, 64), (grey, grey, grey)) for grey in (250, 251)]
    looks = [(ImageId(0, index), grey_thumbnail(image)) for index, image in enumerate([*large, again, *flat])]
    assert near_duplicates(looks) == {ImageId(0, 40): ImageId(0, 7)}


def test_a_page_stays_small_however_many_images_it_has():
    # a noisy JPEG takes half a byte for each pixel, base64 makes it a third larger
    for num_images in (1, 500, 501, 2_000, 2_001, 8_000, 8_001, 40_000):
        side = longest_side(num_images)
        assert 80 <= side <= 512
        assert num_images * side * side * 0.5 * 4 / 3 < 200e6


def test_images_are_chosen_evenly_from_all_datasets(make_images, load_toml):
    make_images("few", 3, caption="a cat")
    make_images("many", 9, caption="a cat")
    dataset = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/%s'\n"
    data = load_toml(dataset % "few" + dataset % "many")
    assert choose_images(data, 4) == [ImageId(0, 0), ImageId(1, 0), ImageId(1, 3), ImageId(1, 6)]
    assert len(choose_images(data, 12)) == 12


@pytest.fixture
def stepping(make_images, load_toml):
    """Steps through 6 images in batches of 3, two epochs, pressing the keys given; gives (epoch, batch) of each."""
    make_images("images", 6, caption="a cat")
    text = "[[datasets]]\nresolution = 64\nbatch_size = 3\n[[datasets.subsets]]\nimage_dir = '{dir}/images'\n"
    data = load_toml(text)

    def step(keys: str):
        pressed, seen = iter(keys), []

        def show(item, micro_batch):
            seen.append((micro_batch.epoch, micro_batch.index))
            return ord(next(pressed, " "))

        step_through(data, DrawSettings(1, True, StepCounter(1, 2, 4)), 2, show)
        return seen

    return step


def test_the_keys_of_the_window(stepping):
    first, second = [(0, 0)] * 3 + [(0, 1)] * 3, [(1, 0)] * 3 + [(1, 1)] * 3
    assert stepping("") == first + second
    assert stepping("\x1b") == first[:1]
    assert stepping(" s") == first[:2] + first[3:] + second
    assert stepping("S  E \x1b") == [first[0], *first[3:], *second[:2]]


def test_without_a_display_the_page_is_recommended(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="needs a display") as caught:
        open_window()
    assert "--debug_dataset " in caught.value.hint
