"""Without this a slip of the keyboard in a dataset file ends in a traceback, or much later."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from library.cli.errors import UserError
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.load_data import load_training_data
from tests.data.image_files import save_image

TEXTS = (
    """
[general]
shuffle_caption = true
caption_extension = ".caption"
keep_tokens = 1
custom_attributes = {artist = "me", made = 2020-01-02T03:04:05Z}

[[datasets]]
resolution = [64, 96]
batch_size = 2
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 16

  [[datasets.subsets]]
  image_dir = "img"
  num_repeats = 3
  class_tokens = "a cat"
  caption_dropout_rate = 0.1

  [[datasets.subsets]]
  image_dir = "reg"
  class_tokens = "cat"
  is_reg = true
  face_crop_aug_range = [1.0, 2.5]
""",
    """
[[datasets]]
resolution = 64

  [[datasets.subsets]]
  metadata_file = "meta.json"
  image_dir = "img"
  num_repeats = 2
  flip_aug = true
  resize_interpolation = "area"
  token_warmup_min = 1
  token_warmup_step = 0.5

[[datasets]]
resolution = 128
bucket_no_upscale = true

  [[datasets.subsets]]
  image_dir = "img"
  caption_prefix = "photo of"
  caption_separator = ";"
  alpha_mask = true
""",
)
VALUES = (
    "true", "0", "-1", "1.5", "1e400", "nan", "-inf", "''", "'\\u0000'", '"\\u0000"', '"\\ud83d"', "[]", "{}",
    "[1, 2]", "[[1], [2]]", "{a = {b = 1}}", "1979-05-27", "07:32:00", "'img'", "'meta.json'", "'data.toml'", "'/'",
    "'.'", "'..'", "9" * 5000, "9" * 400, "1" + "0" * 30, "1000000", "[64, 64, 64]", "[0, 0]", "['64', '64']",
    "'64,64'", "[" * 2000 + "]" * 2000, ".".join("a" * 3000) + " = 1", "x", '"""\n', "'🐈'",
)  # fmt: skip
TOKEN = re.compile(r"\"[^\"\n]*\"|[\w.]+|[\[\]{}=,\n]")

mutations = st.lists(
    st.one_of(
        st.tuples(st.just("value"), st.integers(0, 100), st.sampled_from(VALUES)),
        st.tuples(st.just("line"), st.integers(0, 100), st.integers(-1, 2)),  # removed, kept, repeated
        st.tuples(st.just("move"), st.integers(0, 100), st.integers(0, 100)),
        st.tuples(st.just("token"), st.integers(0, 300), st.integers(0, 300)),  # one put in place of another
        st.tuples(st.just("letter"), st.integers(0, 2000), st.characters()),
        st.tuples(st.just("bytes"), st.integers(0, 2000), st.binary(max_size=4)),
    ),
    min_size=1,
    max_size=4,
)


def _changed_lines(kind: str, place: int, change, lines: list[str]) -> list[str]:
    place %= len(lines)
    if kind == "value":
        key, equals, _ = lines[place].partition("=")
        return [*lines[:place], f"{key}{equals}{change if equals else ''}", *lines[place + 1 :]]
    if kind == "move":
        change %= len(lines)
        rest = [*lines[:place], *lines[place + 1 :]]
        return [*rest[:change], lines[place], *rest[change:]]
    return [*lines[:place], *[lines[place]] * (change + 1), *lines[place + 1 :]]


def _mutated(text: str, changes: list[tuple]) -> bytes:
    content = text.encode()
    for kind, place, change in changes:
        text = content.decode("utf-8", "ignore")
        if kind in ("value", "line", "move"):
            content = "\n".join(_changed_lines(kind, place, change, text.split("\n"))).encode()
        elif kind == "token":
            tokens = list(TOKEN.finditer(text)) or [re.match("", text)]
            old, new = tokens[place % len(tokens)], tokens[change % len(tokens)]
            content = (text[: old.start()] + new[0] + text[old.end() :]).encode()
        else:
            place %= len(content) + 1
            put = change.encode() if isinstance(change, str) else change
            content = content[:place] + put + content[place + 1 :]
    return content


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    for name in ("img/a", "img/b", "reg/c"):
        save_image(tmp_path / f"{name}.png", (64, 64))
        (tmp_path / f"{name}.caption").write_text("a cat; red, blue")
    (tmp_path / "meta.json").write_text('{"a": {"caption": "x"}, "b.png": {"tags": "y"}}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _load(content: bytes, name: str = "data.toml", caching: CachingOptions | None = None) -> bool:
    """Whether the file can be trained on; whatever is raised beside `UserError` is a failure."""
    Path(name).write_bytes(content)
    try:
        data = load_training_data(DatasetOptions(dataset_config=name), caching)
    except UserError as error:
        assert all(str(each) for each in getattr(error, "errors", [error]))
        str(error).encode()
        return False
    data.batches_of_epoch(seed=1, epoch=0)
    return True


@pytest.mark.parametrize("text", TEXTS)
def test_the_files_are_valid_as_they_stand(folder: Path, text: str) -> None:
    assert _load(text.encode())


@pytest.mark.parametrize("text", TEXTS, ids=["folders", "metadata"])
@settings(max_examples=160, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=mutations, caches=st.booleans())
def test_a_mutated_toml_file_is_trained_on_or_refused(folder: Path, text: str, changes, caches: bool) -> None:
    assert _load(_mutated(text, changes), caching=CachingOptions(cache_latents=caches)) in (True, False)


JSON_TEXT = json.dumps(
    {"general": {"resolution": 64}, "datasets": [{"subsets": [{"image_dir": "img", "num_repeats": 2}]}]}, indent=1
)
METADATA_TEXT = json.dumps({"a": {"caption": "x", "train_resolution": [64, 64]}, "img/b.png": {"tags": "y"}}, indent=1)
USES_METADATA = b"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = 'img'\nmetadata_file = 'meta.json'\n"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=mutations)
def test_a_mutated_json_file_is_trained_on_or_refused(folder: Path, changes) -> None:
    assert _load(JSON_TEXT.encode(), "data.json")
    _load(_mutated(JSON_TEXT, changes), "data.json")


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=mutations)
def test_a_mutated_metadata_file_is_trained_on_or_refused(folder: Path, changes) -> None:
    (folder / "meta.json").write_bytes(METADATA_TEXT.encode())
    assert _load(USES_METADATA)
    (folder / "meta.json").write_bytes(_mutated(METADATA_TEXT, changes))
    _load(USES_METADATA)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(value=st.sampled_from(VALUES), line=st.integers(0, 60), second=st.booleans())
def test_every_odd_value_in_every_line_is_taken_or_refused(folder: Path, value: str, line: int, second: bool) -> None:
    with contextlib.suppress(IndexError):
        lines = _changed_lines("value", line, value, TEXTS[second].split("\n"))
        assert _load("\n".join(lines).encode()) in (True, False)
