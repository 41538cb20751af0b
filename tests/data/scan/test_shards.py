"""Tar shards: if these fail, a run on shards learns other things than one on the same images in a folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from library.cli.errors import UserError
from library.data.batches.loader import BatchDataset
from library.data.batches.plan import TrainingData
from library.data.config.options import DatasetOptions
from library.data.images.decoding import load_image
from library.data.load_data import load_training_data
from library.data.records import StepCounter
from library.data.scan.image_search import find_images
from library.data.scan.shard_index import index_path
from library.data.scan.shard_paths import expand_braces, find_shards
from tests.data.image_files import save_image

MakeShard = Callable[..., Path]
LONG_AGO = 10**9  # an index is kept of shards that have settled


@pytest.fixture
def make_shard(tmp_path: Path) -> MakeShard:
    """`make_shard("a.tar", {"0.png": (64, 64), "0.txt": "a cat"})`: sizes make images, texts and bytes are contents."""

    def make(name: str, members: Mapping[str, tuple[int, int] | str | bytes]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        with tarfile.open(path, "w") as archive:
            for number, (member, content) in enumerate(members.items()):
                if isinstance(content, tuple):
                    content = save_image(tmp_path / "drawn.png", content, number).read_bytes()
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        os.utime(path, (LONG_AGO, LONG_AGO))
        return path

    return make


def load(*shards: object, **options) -> TrainingData:
    return load_training_data(DatasetOptions(shards=tuple(map(str, shards)), resolution=(64, 64), **options))


def captions(data: TrainingData) -> dict[str, str]:
    return {record.key: record.caption for record in data.datasets[0].records}


# what bash makes of them
@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("x{0,1}{a,b}", "x0a x0b x1a x1b"),
        ("{08..11}", "08 09 10 11"),
        ("{9..11}", "9 10 11"),
        ("{3..1}", "3 2 1"),
        ("a{01..1}", "a01"),
        ("{c..a}", "c b a"),
        ("{0..6..2}", "0 2 4 6"),
        ("{a,b}{1..2}/{x}", "a1/{x} a2/{x} b1/{x} b2/{x}"),
        ("x{}y", "x{}y"),
    ],
)
def test_braces_stand_for_what_a_shell_makes_of_them(text: str, expanded: str) -> None:
    assert expand_braces(text) == expanded.split(" ")


def test_shards_are_given_by_pattern_folder_list_or_in_one_text(make_shard: MakeShard, tmp_path: Path) -> None:
    paths = [str(make_shard(f"d/{name}.tar", {"0.png": (64, 64)})) for name in ("00", "01", "02")]
    (tmp_path / "d" / "notes.txt").write_text("")
    folder = str(tmp_path / "d")
    given = [(f"{folder}/{{00..02}}.tar",), (folder,), (f"{folder}/*.tar",), tuple(paths), ("::".join(paths),)]
    assert [find_shards(each, "--shards") for each in given] == [paths] * len(given)
    assert find_shards((paths[2], folder), "--shards") == [paths[2], *paths[:2]]  # each once, where it comes first
    assert find_shards((f"file://{paths[1]}", f"file://{folder}/*.tar"), "--shards") == [
        f"file://{paths[1]}", f"file://{paths[0]}", f"file://{paths[2]}"
    ]  # fmt: skip


def test_shards_give_the_plan_captions_and_pixels_of_the_folder_they_were_made_of(tmp_path: Path) -> None:
    sizes = [(64, 64), (96, 64), (64, 96), (80, 64), (64, 64)]
    folder = tmp_path / "images"
    for number, size in enumerate(sizes):
        path = save_image(folder / f"{number}.png", size, number)
        path.with_suffix(".txt").write_text(f"tag{number}, b{number}, c{number}", encoding="utf-8")
    for name, numbers in (("0.tar", range(3)), ("1.tar", range(3, 5))):
        with tarfile.open(tmp_path / name, "w") as archive:
            for path in sorted(folder.iterdir()):
                if int(path.stem) in numbers:
                    archive.add(path, path.name)
    file = tmp_path / "data.toml"

    def load_subset(source: str) -> TrainingData:
        keys = (
            "caption_extension = '.txt'\nshuffle_caption = true\nflip_aug = true\nrandom_crop = true\nnum_repeats = 2"
        )
        buckets = "enable_bucket = true\nmin_bucket_reso = 32\nbucket_reso_steps = 8\nbatch_size = 2"
        text = f"[[datasets]]\nresolution = 64\n{buckets}\n[[datasets.subsets]]\n{source}\n{keys}\n"
        file.write_text(text, encoding="utf-8")
        return load_training_data(DatasetOptions(dataset_config=str(file)))

    from_folder = load_subset(f"image_dir = '{folder.as_posix()}'")
    from_shards = load_subset(f"shards = '{tmp_path.as_posix()}/{{0..1}}.tar'")
    clock = StepCounter(1, from_folder.num_micro_batches, 2 * from_folder.num_micro_batches)
    loaders = [
        # a worker that is spawned gets its dataset pickled
        pickle.loads(pickle.dumps(BatchDataset(data, seed=3, clock=clock, latent_source="pixels")))
        for data in (from_folder, from_shards)
    ]
    for epoch in range(2):
        plans = [data.batches_of_epoch(3, epoch) for data in (from_folder, from_shards)]
        assert plans[0] == plans[1]
        for batch in plans[0]:
            one, other = (loader[batch] for loader in loaders)
            assert one.captions == other.captions
            np.testing.assert_array_equal(one.pixels.numpy(), other.pixels.numpy())
    assert from_folder.digest() == from_shards.digest()  # so that either resumes what the other has begun


def test_samples_are_files_of_one_name_up_to_the_first_dot(make_shard: MakeShard, caplog) -> None:
    """As `webdataset.WebDataset` groups the same names (1.0.2, looked at)."""
    image = (64, 64)
    shard = make_shard(
        "a.tar",
        {
            "a.png": image, "a.txt": "of a", "./b.png": image, "./b.caption": "of b", "dir/c.png": image,
            "dir/c.txt": "of c", "dir.v1/d.png": image, "dir.v1/d.txt": "of d", "e.v2.png": image, "e.txt": "of e",
            ".hidden.png": image, "f.PNG": image, "f.TXT": "of f", "__meta__/g.png": image, "h.seg.png": image,
            "h.png": image, "h.txt": "of h",
        },
    )  # fmt: skip
    found = captions(load(shard))
    assert found == {
        "a.png": "of a", "b.png": "of b", "dir/c.png": "of c", "dir.v1/d.png": "of d", "f.PNG": "of f", "h.png": "of h"
    }  # fmt: skip
    assert "1 sample without an image" in caplog.text and "a.tar::e;" in caplog.text


def test_captions_come_from_the_first_of_the_files_that_may_hold_one(make_shard: MakeShard, caplog) -> None:
    image = (64, 64)
    shard = make_shard(
        "a.tar",
        {
            "0.png": image, "0.tags": "own", "0.txt": "text",
            "1.png": image, "1.json": json.dumps({"caption": " of json ", "tags": "x, y", "url": 1}), "1.txt": "text",
            "2.png": image, "2.json": json.dumps({"caption": "of json", "tags": ["x", "y"], "url": 1}),
            "3.png": image, "3.json": json.dumps({"caption": None}),
            "4.png": image, "4.caption": "\ufefffirst\nsecond\n",
            "5.png": image, "5.txt": "",
        },
    )  # fmt: skip
    expected = {"0.png": "own", "1.png": "text", "2.png": "of json, x, y", "3.png": "", "4.png": "first", "5.png": ""}
    assert captions(load(shard, caption_extension=".tags")) == expected
    assert "1 of 6 images have neither a .tags, .txt or .caption file" in caplog.text
    assert "1 empty caption: " in caplog.text and "only the first line of 1 caption is used" in caplog.text
    lines = captions(load(shard, caption_extension=".tags", enable_wildcard=True))
    assert lines == {**expected, "4.png": "first\nsecond"}
    assert captions(load(shard))["0.png"] == "text"  # another extension: not what the index was made with


def test_a_shard_is_read_once_and_again_when_it_has_changed(make_shard: MakeShard) -> None:
    shard = make_shard("a.tar", {"0.png": (64, 64), "0.txt": "one"})
    before = load(shard)
    index = index_path(str(shard))
    body = index.read_bytes().partition(b"\n")[2].replace(b'"one"', b'"two"')
    header = {"format": "shard index", "version": 1, "crc32": zlib.crc32(body)}
    index.write_bytes(json.dumps(header).encode() + b"\n" + body)
    assert captions(load(shard)) == {"0.png": "two"}  # the index is what is read
    index.write_bytes(index.read_bytes()[:-1])
    assert captions(load(shard)) == {"0.png": "one"}  # but not one that is damaged
    make_shard("a.tar", {"0.png": (64, 64), "0.txt": "new"})
    after = load(shard)
    assert captions(after) == {"0.png": "new"}
    with pytest.raises(UserError, match="has changed since it was scanned"):
        os.utime(shard, (LONG_AGO + 1, LONG_AGO + 1))
        load_image(after.latent_keys()[0])
    identities = [data.datasets[0].records[0].member.shard.identity for data in (before, after)]
    assert identities[0] != identities[1]


def test_urls_are_read_by_fsspec_and_indexed_in_the_folder_of_caches(make_shard: MakeShard, tmp_path: Path) -> None:
    import fsspec

    shard = make_shard("a.tar", {"0.png": (96, 64), "0.txt": "far away"})
    memory = fsspec.filesystem("memory")
    memory.pipe("/shards/a.tar", shard.read_bytes())
    data = load("memory://shards/*.tar", shard_cache_dir=str(tmp_path / "caches"))
    (record,) = data.datasets[0].records
    assert (record.path, record.caption, record.size) == ("memory:///shards/a.tar::0.png", "far away", (96, 64))
    local = load(shard)
    pixels = [load_image(each.latent_keys()[0]).pixels for each in (data, local)]
    np.testing.assert_array_equal(pixels[0], pixels[1])
    assert [path.name.startswith("a.tar-") for path in (tmp_path / "caches").iterdir()] == [True]
    memory.pipe("/shards/a.tar", make_shard("b.tar", {"0.png": (64, 64), "0.txt": "replaced"}).read_bytes())
    again = load("memory://shards/a.tar", shard_cache_dir=str(tmp_path / "caches"))
    assert captions(again) == {"0.png": "replaced"}
    with pytest.raises(UserError, match=r"shard memory://shards/b.tar does not exist"):
        load("memory://shards/b.tar")


GOOD = {"0.png": (64, 64), "0.txt": "a"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.txt": "a"}, r"no images in \S+a.tar"),
        ({"0.png": b"not an image"}, r"image \S+a.tar::0.png cannot be read: not an image"),
        ({"0.png": b""}, r"image \S+a.tar::0.png is empty"),
        ({**GOOD, "0.jpg": (64, 64)}, r"a.tar has several images in one sample: 0.png and 0.jpg"),
        ({"0.png": (64, 64), "0.txt": b"\xff\xfe"}, r"caption \S+a.tar::0.txt is not UTF-8 text: byte 0"),
        ({"0.png": (64, 64), "0.json": "{"}, r"a.tar::0.json is not valid JSON"),
    ],
)
def test_a_mistake_in_a_shard_is_one_line_that_names_it(make_shard: MakeShard, members, message: str) -> None:
    shard = make_shard("a.tar", members)
    with pytest.raises(UserError, match=message) as caught:
        load(shard)
    assert caught.value.hint and "\n" not in caught.value.message


def test_a_damaged_shard_is_one_line_that_names_it(make_shard: MakeShard, tmp_path: Path) -> None:
    shard = make_shard("a.tar", {**GOOD, "1.png": (64, 64), "1.txt": "b"})
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        second = archive.getmembers()[2]

    def expect(content: bytes, message: str) -> None:
        shard.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load(shard)

    expect(whole[: second.offset_data + 20], "a.tar is truncated or no tar file: unexpected end of data")
    expect(whole[: second.offset], "truncated or no tar file: the end of the archive is missing")
    expect(whole[: second.offset] + b"x" * 512 + whole[second.offset + 512 :],
           f"truncated or no tar file: no header of a file at byte {second.offset}")  # fmt: skip
    expect(b"", "a.tar is truncated or no tar file")
    expect(b"an image, not a tar file" * 100, "a.tar is truncated or no tar file")
    expect(b"\x1f\x8b" + whole, "a.tar is compressed")
    with tarfile.open(shard, "w") as archive:
        for _ in range(2):
            archive.addfile(second, io.BytesIO(bytes(second.size)))
    with pytest.raises(UserError, match=r"a.tar has two files of the name 1.png"):
        load(shard)
    with pytest.raises(UserError, match=r"--shards: 2 shards do not exist: \S+x1.tar, \S+x2.tar"):
        load(tmp_path / "x{1..2}.tar")
    with pytest.raises(UserError, match=r"--shards: \S+x\*.tar meets no shard"):
        load(tmp_path / "x*.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"folder \S+empty contains no shards"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match="pipe:cat a.tar: commands are not run"):
        load("pipe:cat a.tar")
    with pytest.raises(UserError, match="shard nowhere://a.tar cannot be opened"):
        load("nowhere://a.tar")


def test_unreadable_images_are_skipped_where_that_is_asked_for_from_the_index_too(make_shard, caplog) -> None:
    shard = make_shard("a.tar", {**GOOD, "1.png": b"not an image", "2.png": (64, 64)})
    for _ in range(2):
        caplog.clear()
        assert list(captions(load(shard, skip_bad_images=True))) == ["0.png", "2.png"]
        assert "skipping 1 unreadable image" in caplog.text and "a.tar::1.png" in caplog.text
        assert index_path(str(shard)).exists()


def test_options_that_shards_cannot_have_are_refused(make_shard: MakeShard, load_toml) -> None:
    shard = make_shard("a.tar", GOOD)
    with pytest.raises(UserError, match="--shards cannot be used with --train_data_dir"):
        load(shard, train_data_dir="images")
    with pytest.raises(UserError, match=r"conditioning_data_dir cannot be used with datasets\[0\].subsets\[0\].shards"):
        load_toml(
            "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nshards = ['{dir}/a.tar']\n"
            "conditioning_data_dir = '{dir}'"
        )


@pytest.mark.parametrize("given", ["a.tar", "", "{0..3}.tar"])
def test_shards_given_as_a_folder_of_images_get_an_error_that_says_how_to_give_them(
    make_shard: MakeShard, tmp_path: Path, given: str
) -> None:
    path = str(make_shard("shards/a.tar", GOOD).parent / given)
    file = tmp_path / "data.toml"
    file.write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{path}'\n")
    for options, hint in (
        (DatasetOptions(train_data_dir=path, resolution=(64, 64)), "with --shards instead"),
        (DatasetOptions(dataset_config=str(file), resolution=(64, 64)), "as shards instead of image_dir"),
    ):
        with pytest.raises(UserError) as caught:
            load_training_data(options)
        assert hint in caught.value.hint
    with pytest.raises(UserError) as caught:
        find_images(path)
    assert "--shards" in caught.value.hint
