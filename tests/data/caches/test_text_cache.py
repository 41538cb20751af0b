"""Without these a run trains on the outputs of another caption or encoder, or encodes captions that were fine."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np

from library.data.caches.cache_names import CacheFormat, text_cache_path
from library.data.caches.text_cache import read_text_outputs, write_text_outputs


def _states(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((77, 8)).astype(np.float32)


NAMES = ["hidden_states"]


def write(path: Path, states: dict[str, np.ndarray]) -> None:
    write_text_outputs(path, {caption: {"hidden_states": each} for caption, each in states.items()}, "clip")


def test_what_is_written_is_read_by_caption_and_by_other_readers(tmp_path: Path) -> None:
    path = text_cache_path(str(tmp_path / "a.png"))
    write(path, {"a cat": _states(1), "": _states(2)})
    found = read_text_outputs(path, ["", "a cat", "a dog"], "clip", NAMES)
    assert found.keys() == {"", "a cat"}
    np.testing.assert_array_equal(found["a cat"]["hidden_states"], _states(1))
    assert read_text_outputs(path, ["a cat"], "another encoder", NAMES) == {}
    assert read_text_outputs(path, ["a cat"], "clip", ["hidden_states", "pooled"]) == {}
    with np.load(tmp_path / "a.png_sd_te.npz") as file:
        np.testing.assert_array_equal(file["hidden_states_0"], _states(1))
        np.testing.assert_array_equal(file["hidden_states_1"], _states(2))
    with zipfile.ZipFile(tmp_path / "a.png_sd_te.npz") as archive:
        assert json.loads(archive.read("made_from.json"))["1"] == {"caption": "", "encoder": "clip"}


def test_names_of_any_length_that_an_image_can_have_are_cached_and_kept_apart(tmp_path: Path) -> None:
    images = [str(tmp_path / ("ä" * 125 + f"{number}.png")) for number in (1, 2)]  # 255 bytes
    for number, image in enumerate(images):
        Path(image).touch()
        write(text_cache_path(image), {"a cat": _states(number)})
    for number, image in enumerate(images):
        found = read_text_outputs(text_cache_path(image), ["a cat"], "clip", NAMES)
        np.testing.assert_array_equal(found["a cat"]["hidden_states"], _states(number))


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = text_cache_path(str(tmp_path / "a.png"))
    made_from = json.dumps({"caption": "a cat", "encoder": "clip"}, sort_keys=True)
    np.savez(path, hidden_states_0=_states(3), made_from_0=np.array(made_from))
    found = read_text_outputs(path, ["a cat"], "clip", NAMES)
    np.testing.assert_array_equal(found["a cat"]["hidden_states"], _states(3))
    assert read_text_outputs(path, ["a dog"], "clip", NAMES) == {}


def test_the_first_caption_of_a_format_by_stem_has_the_names_of_other_programs(tmp_path: Path) -> None:
    format = CacheFormat(text_ending="_te_outputs.npz", text_by_stem=True)
    path = text_cache_path(str(tmp_path / "a.b.png"), format)
    assert path.name == "a.b_te_outputs.npz"
    outputs = {text: {"hidden_state1": _states(n), "pool2": _states(n)[0]} for n, text in enumerate(["a", "b"])}
    write_text_outputs(path, outputs, "two encoders", numbers_first=False)
    with np.load(path) as file:
        assert set(file.files) - {"made_from.json"} == {"hidden_state1", "pool2", "hidden_state1_1", "pool2_1"}
        np.testing.assert_array_equal(file["pool2"], _states(0)[0])
    found = read_text_outputs(path, ["b", "a"], "two encoders", ["hidden_state1", "pool2"])
    for number, text in enumerate(["a", "b"]):
        np.testing.assert_array_equal(found[text]["hidden_state1"], _states(number))
        np.testing.assert_array_equal(found[text]["pool2"], _states(number)[0])
