"""Without these the index of a folder tells of captions and images that are no longer there, or saves no time."""

from __future__ import annotations

import json
import logging
import os
import zlib
from pathlib import Path

import pytest

from library.cli.errors import UserError
from library.data.config.config import SubsetConfig
from library.data.records import ImageRecord
from library.data.scan.folders import scan_folder
from library.data.scan.scan_index import INDEX_NAME
from library.data.scan.scanner import scan_files
from tests.data.image_files import save_image

OLD_NS = 1_600_000_000 * 10**9  # a time that files of the tests are given: what was just written is not indexed


def _make(folder: Path, name: str, size: tuple[int, int] = (40, 24), caption: str | None = "a cat") -> None:
    _age(save_image(folder / f"{name}.png", size))
    if caption is not None:
        (folder / f"{name}.caption").write_text(caption, encoding="utf-8")
        _age(folder / f"{name}.caption")


def _age(path: Path, seconds: int = 0) -> None:
    os.utime(path, ns=(OLD_NS, OLD_NS + seconds * 10**9))


def _scan(folder: Path, skip_unreadable: bool = False, **settings) -> list[ImageRecord]:
    return scan_folder(SubsetConfig("s", str(folder), cache_info=True, **settings), 0, skip_unreadable=skip_unreadable)


def _replace_unseen(path: Path, content: bytes) -> None:
    """Changes a file keeping its size and mtime."""
    status = os.stat(path)
    path.write_bytes(content.ljust(status.st_size))
    os.utime(path, ns=(OLD_NS, status.st_mtime_ns))


MARK = 1000


def _mark(folder: Path) -> None:
    """Makes all images of the index wider: who finds them so has not read the files."""
    header, *blocks, _ = map(json.loads, (folder / INDEX_NAME).read_bytes().splitlines())
    for block in blocks:
        block["widths"] = [width + MARK for width in block["widths"]]
    (folder / INDEX_NAME).write_bytes(_with_right_checksum([header, *blocks]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "猫"):
        _make(tmp_path / "images", name, caption=f"caption of {name}")
    _make(tmp_path / "images", "bare", caption=None)
    return tmp_path / "images"


def test_a_second_start_reads_no_file_that_is_unchanged(folder: Path) -> None:
    first = _scan(folder, class_tokens="x")
    _mark(folder)
    assert [record.size[0] for record in _scan(folder, class_tokens="x")] == [each.size[0] + MARK for each in first]
    # class tokens are not part of what is kept
    assert [record.caption for record in _scan(folder, class_tokens="y")][2] == "y"


def test_without_the_option_no_index_is_written_or_read(folder: Path) -> None:
    subset = SubsetConfig("s", str(folder), class_tokens="x")
    scan_folder(subset, 0)
    assert not (folder / INDEX_NAME).exists()
    _scan(folder, class_tokens="x")
    _replace_unseen(folder / "a.caption", b"new")
    assert [record.caption for record in scan_folder(subset, 0)][0] == "new"


@pytest.mark.parametrize("seconds", [1, -1])
def test_changed_captions_and_images_are_read_again(folder: Path, seconds: int) -> None:
    for change, size in ((0, (40, 24)), (seconds, (24, 40))):
        if change:
            _scan(folder, class_tokens="x")
        save_image(folder / "b.png", size)
        os.truncate(folder / "b.png", 10_000)  # of the same number of bytes
        _age(folder / "b.png", change)
    (folder / "a.caption").write_text("CAPTION OF A")  # as long as before
    _age(folder / "a.caption", seconds)
    (folder / "猫.caption").write_text("of another length")
    _age(folder / "猫.caption")
    records = {record.key: record for record in _scan(folder, class_tokens="x")}
    assert records["a.png"].caption == "CAPTION OF A"
    assert records["b.png"].size == (24, 40)
    assert records["b.png"].mtime_ns == OLD_NS + seconds * 10**9
    assert records["猫.png"].caption == "of another length"


def test_files_replaced_by_ones_of_the_same_size_and_mtime_are_read_again(folder: Path) -> None:
    os.truncate(folder / "b.png", 10_000)
    _age(folder / "b.png")
    _scan(folder, class_tokens="x")
    _replace_unseen(folder / "a.caption", b"CAPTION OF A")
    _replace_unseen(folder / "b.png", save_image(folder.parent / "b.png", (24, 40)).read_bytes())
    records = {record.key: record for record in _scan(folder, class_tokens="x")}
    assert (records["a.png"].caption, records["b.png"].size) == ("CAPTION OF A", (24, 40))


def test_an_index_of_an_earlier_version_is_replaced_without_a_warning(folder: Path, caplog) -> None:
    first, index = _scan(folder, class_tokens="x"), folder / INDEX_NAME
    sound = index.read_bytes()
    index.write_bytes(_with_right_checksum([{"format": "scan index", "version": 1, "all_lines": False}]))
    assert _scan(folder, class_tokens="x") == first and not caplog.text
    assert index.read_bytes() == sound


def test_what_comes_and_goes_is_seen(folder: Path) -> None:
    _scan(folder, class_tokens="x")
    (folder / "a.png").unlink()
    (folder / "b.caption").unlink()
    (folder / "bare.caption").write_text("now written")
    _make(folder, "aa", (24, 40), "new")
    captions = {record.key: record.caption for record in _scan(folder, class_tokens="x")}
    assert captions == {"aa.png": "new", "b.png": "x", "bare.png": "now written", "猫.png": "caption of 猫"}
    index = (folder / INDEX_NAME).read_text(encoding="utf-8")
    assert '"a.png"' not in index and '"aa.png"' in index


def test_options_that_change_captions_are_heeded(folder: Path) -> None:
    (folder / "a.caption").write_text("one\n\ntwo\n")
    _age(folder / "a.caption")
    (folder / "a.txt").write_text("from txt\n")  # as long and as old as the other
    _age(folder / "a.txt")
    for _ in range(2):
        assert _scan(folder, class_tokens="x")[0].caption == "one"
        assert _scan(folder, class_tokens="x", enable_wildcard=True)[0].caption == "one\ntwo"
        assert _scan(folder, class_tokens="x", caption_extension=".txt")[0].caption == "from txt"


def test_an_index_is_only_written_when_something_is_new(folder: Path) -> None:
    _scan(folder, class_tokens="x")
    before = os.stat(folder / INDEX_NAME)
    _scan(folder, class_tokens="x")
    after = os.stat(folder / INDEX_NAME)
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_files_written_just_now_are_not_trusted_the_next_time(folder: Path) -> None:
    (folder / "a.caption").write_text("first")
    assert _scan(folder, class_tokens="x")[0].caption == "first"
    _replace_unseen(folder / "a.caption", b"later")
    os.utime(folder / "a.caption")
    _scan(folder, class_tokens="x")
    _replace_unseen(folder / "a.caption", b"third")
    assert _scan(folder, class_tokens="x")[0].caption == "third"


def _with_right_checksum(lines: list) -> bytes:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return body + json.dumps({"crc32": zlib.crc32(body)}).encode() + b"\n"


def _block(index: bytes) -> dict:
    return json.loads(index.splitlines()[1])


HEADER = {"format": "scan index", "version": 2, "all_lines": False}
DAMAGED = {
    "empty": lambda index: b"",
    "cut": lambda index: index[:-200],
    "without its last line": lambda index: index[: index.rindex(b"{")],
    "a changed caption": lambda index: index.replace(b"caption of a", b"caption of z"),
    "of other programs": lambda index: b'{"a.png": {"caption": "z", "resolution": [1, 1]}}',
    "not JSON": lambda index: b"\xff\xfe\0",
    "deeply nested": lambda index: b"[" * 100_000,
    "a list": lambda index: b"[1, 2]\n",
    "of a later version": lambda index: index.replace(b'"version":2', b'"version":3'),
    "without columns": lambda index: _with_right_checksum([HEADER, {}]),
    "of columns of wrong types": lambda index: _with_right_checksum([HEADER, dict.fromkeys(_block(index), [1])]),
    "not sorted": lambda index: _with_right_checksum([HEADER, _block(index), _block(index)]),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_index_is_made_anew_with_a_warning(folder: Path, how: str, caplog) -> None:
    first, sound = _scan(folder, class_tokens="x"), (folder / INDEX_NAME).read_bytes()
    (folder / INDEX_NAME).write_bytes(DAMAGED[how](sound))
    with caplog.at_level(logging.WARNING):
        assert _scan(folder, class_tokens="x") == first
    assert caplog.text.count("is corrupt and will be rebuilt") == 1 and INDEX_NAME in caplog.text
    assert (folder / INDEX_NAME).read_bytes() == sound


def test_a_folder_that_cannot_be_written_to_gets_a_warning(folder: Path, caplog) -> None:
    (folder / INDEX_NAME).mkdir()  # permissions do not hold for every user that runs tests
    with caplog.at_level(logging.WARNING):
        assert len(_scan(folder, class_tokens="x")) == 4
    assert f"{INDEX_NAME} cannot be" in caplog.text


def test_bad_images_are_found_again_and_the_others_kept(folder: Path, caplog) -> None:
    (folder / "bad.png").write_bytes(b"")
    _age(folder / "bad.png")
    with pytest.raises(UserError, match="bad.png is empty"):
        _scan(folder, class_tokens="x")
    assert not (folder / INDEX_NAME).exists(), "nothing is written where something is wrong"
    good = _scan(folder, class_tokens="x", skip_unreadable=True)
    _mark(folder)
    again = _scan(folder, class_tokens="x", skip_unreadable=True)
    assert [record.size[0] for record in again] == [each.size[0] + MARK for each in good]
    with pytest.raises(UserError, match="bad.png is empty"):
        _scan(folder, class_tokens="x")


def test_file_names_that_are_not_utf_8_are_kept(folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        os.rename(folder / "bare.png", folder / name)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    first = _scan(folder, class_tokens="x")
    assert name in [record.key for record in first]
    _mark(folder)
    assert [record.size[0] for record in _scan(folder, class_tokens="x")] == [each.size[0] + MARK for each in first]


def test_several_processes_and_an_index_give_the_same(folder: Path) -> None:
    for number in range(30):
        _make(folder, f"{number:03d}", (20 + number, 30), f"caption {number}")
    pairs = [(f"{number:03d}.png", f"{number:03d}.caption" if number % 3 else None) for number in range(30)]
    (folder / "004.png").write_bytes(b"")
    (folder / "007.caption").write_bytes(b"\xff")
    one = scan_files(str(folder), pairs, all_lines=False)
    assert [str(each) for each in scan_files(str(folder), pairs, all_lines=False, pool_from=2)] == list(map(str, one))
    assert [each.size[0] for each in one if not isinstance(each, UserError)] == [
        20 + number for number in range(30) if number not in (4, 7)
    ]
    sound = [pair for index, pair in enumerate(pairs) if index not in (4, 7)]
    for pool_from in (1, 10**9):
        (folder / INDEX_NAME).unlink(missing_ok=True)
        for _ in range(2):
            found = scan_files(str(folder), sound, all_lines=False, use_index=True, pool_from=pool_from)
            assert found == [each for each in one if not isinstance(each, UserError)]
