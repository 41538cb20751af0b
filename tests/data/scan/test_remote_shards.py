"""Shards behind URLs: if these fail, a run reads many times the bytes that it needs, or ends with a riddle."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from library.cli.errors import UserError
from library.data import storage
from library.data.batches.plan import TrainingData
from library.data.config.options import DatasetOptions
from library.data.images.decoding import load_image
from library.data.load_data import load_training_data
from library.data.scan import shards
from tests.data.http_server import Files, served
from tests.data.image_files import save_image

NUM_IMAGES = 12
BLOCK = 2**14


def shard_of(tmp_path: Path, caption: str = "one") -> bytes:
    """Images that are larger than the first bytes that a scan reads of each, and captions."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number in range(NUM_IMAGES):
            image = save_image(tmp_path / "drawn.bmp", (64, 64), number).read_bytes()
            for name, data in ((f"{number:02}.bmp", image), (f"{number:02}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def load(*urls: object, **options) -> TrainingData:
    return load_training_data(DatasetOptions(shards=tuple(map(str, urls)), resolution=(64, 64), **options))


class CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.sent.append((self.path, start, end - start))
        return self.fs.content[self.path][start:end]


class CountedStore(AbstractFileSystem):
    """A protocol without a request of its own for a range, as fsspec's file system of the Hugging Face Hub is."""

    protocol = "counted"
    content: ClassVar[dict[str, bytes]] = {}
    sent: ClassVar[list[tuple[str, int, int]]] = []

    def info(self, path: str, **_: object) -> dict:
        return {"name": path, "size": len(self.content[path]), "type": "file"}

    def _open(self, path: str, mode: str = "rb", block_size: int | str = "default", **options) -> CountedFile:
        return CountedFile(self, path, mode, block_size, **options)


@pytest.fixture
def http() -> Iterator[Files]:
    pytest.importorskip("aiohttp", reason="fsspec opens http:// with it")
    with served() as files:
        yield files


@pytest.fixture(params=["web server", "protocol without ranges"])
def store(request) -> Iterator[tuple[str, dict[str, bytes], list[tuple[str, int, int]]]]:
    """URL of a folder, what lies in it, and what was read of it."""
    if request.param == "web server":
        files = request.getfixturevalue("http")
        yield f"{files.url}/", files.content, files.sent
    else:
        fsspec.register_implementation("counted", CountedStore, clobber=True)
        yield "counted://", CountedStore.content, CountedStore.sent
        CountedStore.content.clear()
        CountedStore.sent.clear()


def test_a_scan_reads_no_byte_twice_and_an_image_costs_its_own_bytes(
    store, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(storage, "_BLOCK", BLOCK)
    folder, content, sent = store
    whole = shard_of(tmp_path)
    content.update({"/a.tar": whole, "a.tar": whole})  # as the two name it
    data = load(f"{folder}a.tar", shard_cache_dir=str(tmp_path / "caches"))
    assert sum(num_bytes for _, _, num_bytes in sent) <= 1.05 * len(whole)
    assert len(sent) <= len(whole) / BLOCK + 2  # a request for each block, and the one that tries whether ranges work
    sent.clear()
    keys = data.latent_keys()
    for key in keys:
        load_image(key)
    assert [span for _, *span in sent] == [[key.member.offset, key.member.num_bytes] for key in keys]
    sent.clear()
    again = load(f"{folder}a.tar", shard_cache_dir=str(tmp_path / "caches"))
    assert again.digest() == data.digest() and sent == []
    assert "behind URLs" not in caplog.text
    load(f"{folder}a.tar")
    assert "1 shard behind URLs without shard_cache_dir: read whole at each start" in caplog.text and len(sent) > 1


def test_a_shard_that_is_replaced_on_a_web_server_is_read_again(http: Files, tmp_path: Path) -> None:
    http.content["/a.tar"] = shard_of(tmp_path, "old")
    options = {"shard_cache_dir": str(tmp_path / "caches")}
    assert load(f"{http.url}/a.tar", **options).datasets[0].records[0].caption == "old"
    http.content["/a.tar"] = shard_of(tmp_path, "new")  # of the same length
    assert load(f"{http.url}/a.tar", **options).datasets[0].records[0].caption == "new"


def test_what_is_wrong_with_a_web_server_is_one_line_that_names_the_shard(
    http: Files, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(storage, "_PAUSES", (0, 0))
    http.content["/a.tar"] = shard_of(tmp_path)
    url = f"{http.url}/a.tar"
    with pytest.raises(UserError, match=rf"shard {http.url}/b.tar does not exist"):
        load(f"{http.url}/b.tar")
    with pytest.raises(UserError, match=rf"^--shards: 3 shards do not exist: {http.url}/0.tar, {http.url}/1.tar, "):
        load(f"{http.url}/{{0..2}}.tar")
    key = load(url).latent_keys()[0]
    http.num_failures = 2
    np.testing.assert_array_equal(load_image(key).pixels, load_image(key).pixels)  # tried again
    http.takes_ranges = False
    for block in (BLOCK, 2**24):  # a shard that is read in several requests, and one that comes whole
        monkeypatch.setattr(storage, "_BLOCK", block)
        with pytest.raises(UserError, match=rf"shard {url} cannot be read.*range") as caught:
            load(url)
        assert "\n" not in caught.value.message
    with pytest.raises(UserError, match="cannot be read in parts"):
        load_image(key)
    http.num_failures = 100
    for read in (lambda: load(url), lambda: load_image(key), lambda: load(url, f"{http.url}/{{0..2}}.tar")):
        with pytest.raises(UserError, match=rf"^shard {url} cannot be read: 503.*\n  check the network.*$"):
            read()


def test_a_web_server_that_fails_during_a_scan_is_one_error(http: Files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "_BLOCK", BLOCK)
    http.content["/a.tar"] = shard_of(tmp_path)
    http.fails_after = 3
    with pytest.raises(UserError, match=rf"^shard {http.url}/a.tar cannot be read: 503"):
        load(f"{http.url}/a.tar", skip_bad_images=True)


def test_the_processes_of_a_run_index_a_share_each_and_take_over_what_is_left(tmp_path: Path, monkeypatch) -> None:
    paths = [tmp_path / f"{number}.tar" for number in range(3)]
    for path in paths:
        path.write_bytes(shard_of(tmp_path))
        os.utime(path, (10**9, 10**9))
    read: list[str] = []
    read_shard = shards.read_shard
    monkeypatch.setattr(shards, "read_shard", lambda shard, *rest: read.append(shard.path) or read_shard(shard, *rest))
    load(paths[0])  # what another process has done meanwhile
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    data = load(*paths)
    assert read == [str(path) for path in (paths[0], paths[1], paths[2])]
    assert [record.member.shard.path for record in data.datasets[0].records[::NUM_IMAGES]] == list(map(str, paths))


def test_each_process_reads_every_shard_once_its_own_share_first(monkeypatch) -> None:
    def order(rank: int, count: int, local_rank: int, num_local: int) -> str:
        values = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": num_local}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        return "".join(shards.own_share_first("01234567"))

    assert order(0, 1, 0, 1) == "01234567"
    assert [order(rank, 2, rank, 2) for rank in range(2)] == ["02467531", "13576420"]
    # two machines of two processes: where they share no folder, the two of a machine begin apart
    assert [order(rank, 4, rank % 2, 2) for rank in range(4)] == ["04627531", "15736420", "26407531", "37516420"]
