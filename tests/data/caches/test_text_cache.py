"""Without these a run trains on the outputs of another caption or encoder, or encodes captions that were fine."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from library.data.caches.cache_names import text_cache_path
from library.data.caches.text_cache import read_text_outputs, write_text_outputs


def _states(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((77, 8)).astype(np.float32)


def test_what_is_written_is_read_by_caption_and_by_other_readers(tmp_path: Path) -> None:
    image = str(tmp_path / "a.png")
    write_text_outputs(image, {"a cat": _states(1), "": _states(2)}, "clip")
    found = read_text_outputs(image, ["", "a cat", "a dog"], "clip")
    assert found.keys() == {"", "a cat"}
    np.testing.assert_array_equal(found["a cat"], _states(1))
    assert read_text_outputs(image, ["a cat"], "another encoder") == {}
    with np.load(tmp_path / "a.png_sd_te.npz") as file:
        np.testing.assert_array_equal(file["hidden_states_0"], _states(1))
        np.testing.assert_array_equal(file["hidden_states_1"], _states(2))
    with zipfile.ZipFile(tmp_path / "a.png_sd_te.npz") as archive:
        assert json.loads(archive.read("made_from.json"))["1"] == {"caption": "", "encoder": "clip"}


def test_names_of_any_length_that_an_image_can_have_are_cached_and_kept_apart(tmp_path: Path) -> None:
    images = [str(tmp_path / ("ä" * 125 + f"{number}.png")) for number in (1, 2)]  # 255 bytes
    for number, image in enumerate(images):
        Path(image).touch()
        write_text_outputs(image, {"a cat": _states(number)}, "clip")
    for number, image in enumerate(images):
        np.testing.assert_array_equal(read_text_outputs(image, ["a cat"], "clip")["a cat"], _states(number))


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    image = str(tmp_path / "a.png")
    made_from = json.dumps({"caption": "a cat", "encoder": "clip"}, sort_keys=True)
    np.savez(text_cache_path(image), hidden_states_0=_states(3), made_from_0=np.array(made_from))
    np.testing.assert_array_equal(read_text_outputs(image, ["a cat"], "clip")["a cat"], _states(3))
    assert read_text_outputs(image, ["a dog"], "clip") == {}
