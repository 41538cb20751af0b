"""Without these a caption reaches the text encoder in another form than its writer meant."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest

from library.cli.errors import UserError
from library.data.captions import final_caption, read_caption_file, splits_weights, tag_frequency
from library.data.config.config import SubsetConfig
from library.data.images.face_names import Face, split_face_name
from library.data.randomness import keyed_random

# captions, settings, and which captions other trainers make of them how often; in so many draws
CASES = json.loads((Path(__file__).parent / "caption_cases.json").read_text(encoding="utf-8"))
NUM_DRAWS = 1500


def _drawn(case: dict, num_draws: int = NUM_DRAWS, **place) -> Counter[str]:
    subset = SubsetConfig("test", "folder", **case["subset"])
    rngs = (keyed_random(case["name"], number) for number in range(num_draws))
    return Counter(final_caption(case["caption"], subset, rng, **place) for rng in rngs)


def _named(*kinds: str) -> dict:
    cases = [case for case in CASES if any(kind in case for kind in kinds)]
    assert cases
    return {"argvalues": cases, "ids": [case["name"] for case in cases]}


def _expected(case: dict) -> dict[str, float]:
    if "outcomes" in case:
        return case["outcomes"]
    orders = [", ".join(order) for order in itertools.permutations(case["orders_of"])]
    return dict.fromkeys(orders, 1 / len(orders))


def _assert_likely(count: int, share: float, draws: int) -> None:
    """Both are counts of random draws: they may differ by 5 times the deviation of their difference."""
    deviation = math.sqrt(share * (1 - share) * (1 / NUM_DRAWS + 1 / draws))
    assert abs(count / NUM_DRAWS - share) <= 5 * deviation + 1e-4  # shares are rounded


@pytest.mark.parametrize("case", **_named("outcomes", "orders_of"))
def test_captions_come_out_as_often_as_in_the_reference(case: dict) -> None:
    drawn, expected = _drawn(case, **case.get("place", {})), _expected(case)
    assert set(drawn) == set(expected)
    for caption, share in expected.items():
        _assert_likely(drawn[caption], share, case.get("draws", 300))


@pytest.mark.parametrize("case", **_named("presence"))
def test_tags_are_left_out_as_often_as_in_the_reference(case: dict) -> None:
    drawn = _drawn(case)
    tags, counts = Counter(), Counter()
    for caption, count in drawn.items():
        counts[str(len(caption.split(", ")))] += count
        for tag in set(caption.split(", ")):
            tags[tag] += count
    assert set(tags) <= set(case["presence"])
    for tag, share in case["presence"].items():
        _assert_likely(tags[tag], min(share, 1), case["draws"])  # two empty tags are counted twice there
    for number, share in case["counts"].items():
        _assert_likely(counts[number], share, case["draws"])
    if not case["subset"].get("shuffle_caption"):
        assert all(caption.split(", ") == sorted(caption.split(", ")) for caption in drawn)


@pytest.mark.parametrize("case", **_named("at"))
def test_captions_grow_and_vanish_when_the_reference_says(case: dict) -> None:
    for place, caption in case["at"]:
        assert set(_drawn(case, 20, **place)) == {caption}, place


def test_all_orders_are_equally_likely() -> None:
    case = {"name": "orders", "caption": "a, b, c, d, e", "subset": {"shuffle_caption": True}}
    firsts = Counter()
    for caption, count in _drawn(case).items():
        firsts[caption[0]] += count
    assert all(abs(firsts[tag] - 300) < 5 * math.sqrt(1500 * 0.2 * 0.8) for tag in "abcde")


def test_warm_up_is_exact_where_floating_point_numbers_are_not() -> None:
    subset = SubsetConfig("test", "folder", token_warmup_min=1, token_warmup_step=22)
    caption = ", ".join(map(str, range(31)))
    drawn = final_caption(caption, subset, keyed_random(0), step=11, num_steps=100)
    assert drawn == ", ".join(map(str, range(1 + 15)))  # half of 30; in floats 11 * (30 / 22) is less than 15


@pytest.mark.parametrize(
    ("step", "caption"), [(0, ""), (24, ""), (25, "a"), (50, "a, b"), (99, "a, b, c"), (100, "a, b, c, d")]
)
def test_a_warm_up_can_begin_without_tags(step: int, caption: str) -> None:
    """One more of the 4 tags every 25 steps; the tag that is kept is there from the start."""
    subset = SubsetConfig("test", "folder", token_warmup_min=0, token_warmup_step=100)
    assert final_caption("a, b, c, d", subset, keyed_random(0), step=step, num_steps=200) == caption
    kept = dataclasses.replace(subset, keep_tokens=1)
    assert final_caption("me, a, b, c, d", kept, keyed_random(0), step=step, num_steps=200) == (
        f"me, {caption}" if caption else "me"
    )


def test_braces_and_line_breaks_of_captions_survive() -> None:
    wild = SubsetConfig("test", "folder", enable_wildcard=True)
    assert final_caption("a {{smile}} b", wild, keyed_random(0)) == "a {smile} b"
    plain = SubsetConfig("test", "folder")
    assert final_caption("a\r\nb", plain, keyed_random(0)) == final_caption("a\rb", plain, keyed_random(0)) == "a"
    assert final_caption("a\u2028b", plain, keyed_random(0)) == "a\u2028b"


@pytest.mark.parametrize(
    ("content", "caption", "all_lines"),
    [
        (b"one, two\nthree\n", "one, two", "one, two\nthree"),
        (b"  spaced  \n", "spaced", "spaced"),
        (b"\n\nthird line", "", "third line"),
        (b"{x|y}\n\n z \n", "{x|y}", "{x|y}\nz"),
        (b"\xef\xbb\xbfbom", "bom", "bom"),
        (b"crlf one\r\ntwo\r\n", "crlf one", "crlf one\ntwo"),
        (b"old mac\rtwo", "old mac", "old mac\ntwo"),
        ("猫, café\u2028x".encode(), "猫, café\u2028x", "猫, café\u2028x"),
        (b"\n", "", ""),
        (b"", "", ""),
    ],
)
def test_lines_of_caption_files(tmp_path: Path, content: bytes, caption: str, all_lines: str) -> None:
    file = tmp_path / "a.caption"
    file.write_bytes(content)
    assert read_caption_file(str(file)) == caption
    assert read_caption_file(str(file), all_lines=True) == all_lines


def test_a_caption_of_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.caption"
    file.write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match="latin.caption is not UTF-8"):
        read_caption_file(str(file))


def test_shuffling_makes_every_order_of_the_tags() -> None:
    subset = SubsetConfig("test", "folder", shuffle_caption=True)
    orders = {", ".join(order) for order in itertools.permutations("abc")}
    assert {final_caption("a, b, c", subset, random.Random(seed)) for seed in range(100)} == orders


@pytest.mark.parametrize(("separator", "joined"), [(";", "; "), ("; ", "; "), (" ", " "), ("|||", "||| ")])
def test_a_shuffled_caption_keeps_its_own_separator(separator: str, joined: str) -> None:
    subset = SubsetConfig("test", "folder", caption_separator=separator, shuffle_caption=True)
    orders = {joined.join(order) for order in itertools.permutations(("a,b", "c", "d"))}
    caption = separator.join(("a,b", "c", "d"))
    assert {final_caption(caption, subset, random.Random(seed)) for seed in range(100)} == orders


def test_many_braces_that_are_never_closed_are_left_as_they_are() -> None:
    """A draw of 200 KB takes minutes if each brace is looked for again; here it is one pass."""
    subset = SubsetConfig("test", "folder", enable_wildcard=True)
    caption = "{b} " + "{a" * 100_000
    assert final_caption(caption, subset, random.Random(0)) == "b " + "{a" * 100_000


@pytest.mark.parametrize(
    ("caption", "separator", "is_split"),
    [
        ("a, (blue sky, grass:1.2), b", ",", True),
        ("a, (blue sky:1.2), (grass:.8)", ",", False),
        ("a, (blue sky, grass:1.2)", ";", False),
        ("time: 1, (b, c)", ",", False),
        ("(" * 50_000 + ":", ",", False),
    ],
)
def test_weights_around_several_tags_are_seen(caption: str, separator: str, is_split: bool) -> None:
    assert splits_weights(caption, separator) is is_split


def test_tags_are_counted_without_spaces_and_empty_ones() -> None:
    assert tag_frequency(["a, b,, c d ", "A,b", ""], ",") == {"a": 2, "b": 2, "c d": 1}
    assert tag_frequency(["a, b; C", "c"], ";") == {"a, b": 1, "c": 2}


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("photo_10_20_30_40", ("photo", Face((10, 20), (30, 40)))),
        ("my_photo_2_10_20_30_40", ("my_photo_2", Face((10, 20), (30, 40)))),
        ("photo", None),
        ("photo_10_20_30", None),
        ("_10_20_30_40", None),
        ("photo_10_20_30_40_", None),
        ("photo_10_-20_30_40", None),
        ("photo_10_20_0_40", None),
        ("photo_1_2_3_٤", None),  # a digit, but not of file names that programs write
    ],
)
def test_faces_in_file_names(stem: str, split) -> None:
    assert split_face_name(stem) == split
