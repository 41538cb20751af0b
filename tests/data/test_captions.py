"""Without these a caption reaches the text encoder in another form than its writer meant."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from library.cli.errors import UserError
from library.data.captions import final_caption, read_caption_file, tag_frequency
from library.data.config import SubsetConfig

CASES = json.loads((Path(__file__).parent / "caption_reference.json").read_text(encoding="utf-8"))


def _outcomes(caption: str, draws: int = 600, **settings) -> set[str]:
    subset = SubsetConfig("test", "folder", **settings)
    rng = random.Random(0)
    return {final_caption(caption, subset, rng) for _ in range(draws)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_outcomes_are_those_of_the_reference(case: dict) -> None:
    assert _outcomes(case["caption"], **case["subset"]) == set(case["outcomes"])


def test_empty_tags_are_shuffled_along() -> None:
    outcomes = _outcomes(" a ,b,, c ,", draws=2000, shuffle_caption=True)
    assert len(outcomes) == 60  # 5 tags of which two are empty
    assert ", b, a, , c" in outcomes


def test_all_orders_are_equally_likely() -> None:
    subset = SubsetConfig("test", "folder", shuffle_caption=True)
    rng = random.Random(1)
    firsts = [final_caption("a, b, c, d, e", subset, rng)[0] for _ in range(5000)]
    assert all(900 < firsts.count(tag) < 1100 for tag in "abcde")


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"one, two\nthree\n", "one, two"),
        (b"  spaced  \n", "spaced"),
        (b"\n\nthird line", ""),
        (b"\xef\xbb\xbfbom", "bom"),
        (b"crlf one\r\ntwo\r\n", "crlf one"),
        (b"old mac\rtwo", "old mac"),
        ("猫, café\u2028x".encode(), "猫, café\u2028x"),
        (b"", ""),
    ],
)
def test_the_first_line_of_a_caption_file_counts(tmp_path: Path, content: bytes, caption: str) -> None:
    file = tmp_path / "a.caption"
    file.write_bytes(content)
    assert read_caption_file(str(file)) == caption


def test_a_caption_of_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.caption"
    file.write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match="latin.caption is not UTF-8"):
        read_caption_file(str(file))


def test_tags_are_counted_without_spaces_and_empty_ones() -> None:
    assert tag_frequency(["a, b,, c d ", "a,b", ""]) == {"a": 2, "b": 2, "c d": 1}
