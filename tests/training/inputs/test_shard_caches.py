"""Caches of shards: one file for each, never trained on when stale, encoded once."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.numpy import load_file

from library.cli.errors import UserError
from library.data.batches.loader import BatchDataset
from library.data.batches.plan import TrainingData
from library.data.caches.latent_cache import latent_seed
from library.data.caches.shard_files import ShardFiles, ShardFileWriter
from library.data.caches.shard_latents import missing_shard_latents, read_shard_latents, shard_latents_path
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.images.decoding import load_image
from library.data.load_data import load_training_data
from library.data.records import MicroBatch, StepCounter
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.training.inputs.latents import LatentProvider
from library.training.inputs.text_outputs import TextSource

BASE = Path(__file__).resolve().parents[3] / "examples" / "quickstart" / "base"
LONG_AGO = 10**9
SIZES = [(64, 64), (48, 80), (64, 64), (80, 48)]
NAMES = [f"{number}.png" for number in range(4)]


@pytest.fixture(scope="module")
def family():
    return load_family(ModelOptions(pretrained_model_name_or_path=str(BASE)))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of two images with transparency and captions each."""
    for number in range(2):
        write_shard(tmp_path, number)
    return tmp_path


def write_shard(folder: Path, number: int, captions: Mapping[str, str] = {}, broken: str | None = None) -> None:  # noqa: B006
    path = folder / f"{number}.tar"
    with tarfile.open(path, "w") as archive:
        for image in range(2 * number, 2 * number + 2):
            name = NAMES[image]
            width, height = SIZES[image]
            pixels = np.random.default_rng([image, *map(ord, captions.get(name, ""))]).integers(
                0, 256, (height, width, 4), dtype=np.uint8
            )
            Image.fromarray(pixels).save(folder / name)
            content = bytearray((folder / name).read_bytes())
            if name == broken:  # in the middle, where only decoding finds it
                content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
            (folder / name).write_bytes(content)
            (folder / "caption").write_text(captions.get(name, f"image {image}"))
            archive.add(folder / name, name)
            archive.add(folder / "caption", f"{image}.txt")
            (folder / name).unlink()
    (folder / "caption").unlink()
    os.utime(path, (LONG_AGO, LONG_AGO))


def load(folder: Path, **options) -> TrainingData:
    buckets = {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 8}
    return load_training_data(
        DatasetOptions(shards=(f"{folder}/{{0..1}}.tar",), resolution=(64, 64), **buckets, **options)
    )


def source_of(family, skip_unreadable: bool = False, **options) -> LatentProvider:
    return LatentProvider(
        family, CachingOptions(cache_latents_to_disk=True, **options), Accelerator(cpu=True), skip_unreadable
    )


def encoded(family, key) -> np.ndarray:
    return family.encode_images(torch.from_numpy(load_image(key).pixels)[None], [latent_seed(key)])[0].numpy()


def files_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def test_latents_are_in_one_file_for_each_shard_and_are_those_of_the_encoder(family, shards: Path) -> None:
    data = load(shards, flip_aug=True, alpha_mask=True)
    source, files = source_of(family), ShardFiles()
    source.fill_caches(data)
    before = files_of(shards)
    assert sorted(before) == ["0.tar_sd_latents.safetensors", "1.tar_sd_latents.safetensors"]
    for key in data.latent_keys():
        found = read_shard_latents(files, key, source.fingerprint)
        np.testing.assert_array_equal(found.latents, encoded(family, key))
        np.testing.assert_array_equal(found.mask, load_image(key).mask)
    # another program's reader: two images, flipped or not, latents and masks
    arrays = load_file(shards / "0.tar_sd_latents.safetensors")
    assert len(arrays) == 2 * 2 * 2
    np.testing.assert_array_equal(arrays["0.png|64x64|64x64|0x0|||alpha"], encoded(family, data.latent_keys()[2]))
    source.fill_caches(load(shards, flip_aug=True, alpha_mask=True))
    assert files_of(shards) == before  # nothing is encoded twice
    source.fill_caches(load(shards, alpha_mask=True, resize_interpolation="box"))
    source.fill_caches(data)
    assert len(load_file(shards / "0.tar_sd_latents.safetensors")) == 2 * 2 * 2 + 2 * 2  # other settings are added


def test_a_shard_that_has_changed_and_another_vae_make_latents_stale(family, shards: Path, caplog) -> None:
    source = source_of(family)
    source.fill_caches(load(shards))
    before = files_of(shards)
    os.utime(shards / "0.tar", (LONG_AGO + 5, LONG_AGO + 5))
    source.fill_caches(load(shards))
    assert files_of(shards) == before  # a copy of a shard has another time, and keeps its latents
    write_shard(shards, 0, {"0.png": "replaced"})
    data = load(shards)
    stale, good = (next(key for key in data.latent_keys() if key.image_key == name) for name in ("0.png", "2.png"))
    assert read_shard_latents(ShardFiles(), stale, source.fingerprint) is None
    source.fill_caches(data)
    assert "re-encoding the cached latents of 2 images: 2 of shards that have changed" in caplog.text
    assert files_of(shards)["1.tar_sd_latents.safetensors"] == before["1.tar_sd_latents.safetensors"]
    files = ShardFiles()
    np.testing.assert_array_equal(read_shard_latents(files, stale, source.fingerprint).latents, encoded(family, stale))
    assert read_shard_latents(files, good, "another VAE") is None
    assert read_shard_latents(files, good, None) is not None  # --skip_cache_check
    assert sum(map(len, missing_shard_latents(data.latent_keys(), "another VAE").values())) == 4
    assert "4 made with another VAE or precision" in caplog.text


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\x10\0\0\0\0\0\0\0{broken")])
def test_latents_that_are_lost_during_training_are_encoded_again(family, shards: Path, damage, caplog) -> None:
    data, source = load(shards), source_of(family)
    source.fill_caches(data)
    clock = StepCounter(1, 1, 1)
    dataset = BatchDataset(data, seed=1, clock=clock, latent_source="disk", fingerprint=source.fingerprint)
    squares = [number for number, size in enumerate(SIZES) if size == (64, 64)]
    batch = MicroBatch(0, 0, 0, tuple(squares), 0)
    whole = source.latents_of(dataset[batch])
    damage(shards / "0.tar_sd_latents.safetensors")
    lost = dataset[batch]
    assert lost.lost == (0,)
    assert torch.equal(source.latents_of(lost), whole)
    assert "were removed or broken during training" in caplog.text
    source.fill_caches(data)
    assert dataset[batch].lost == ()


def test_images_that_cannot_be_decoded_are_left_out_of_the_file(family, shards: Path) -> None:
    write_shard(shards, 0, broken="1.png")
    data = load(shards)
    unreadable = source_of(family, skip_unreadable=True).fill_caches(data)
    assert unreadable == {f"{shards}/0.tar::1.png"}
    assert len(load_file(shards / "0.tar_sd_latents.safetensors")) == 1
    with pytest.raises(UserError, match=r"image \S+0.tar::1.png cannot be read"):
        source_of(family).fill_caches(load(shards))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    writer = ShardFileWriter(path, {"vae": "x"})
    writer.add("one", np.arange(6).reshape(2, 3))
    writer.close()
    assert list(tmp_path.iterdir()) == []
    writer = ShardFileWriter(path, {"vae": "x"})
    writer.add("one", np.arange(6).reshape(2, 3))
    writer.finish()
    files = ShardFiles()
    np.testing.assert_array_equal(load_file(path)["one"], np.arange(6).reshape(2, 3))
    (one,) = files.read(path, ["one"], {"vae": "x"})
    np.testing.assert_array_equal(one, np.arange(6).reshape(2, 3))
    writer = ShardFileWriter(path, {"vae": "y"})  # as another run does meanwhile
    writer.add("two", np.ones(5))
    writer.add("one", np.zeros(2))
    writer.finish()
    assert files.read(path, ["one"], {"vae": "x"}) is None and files.read(path, ["three"], {}) is None
    np.testing.assert_array_equal(files.read(path, ["one"], {"vae": "y"})[0], np.zeros(2))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="truncated"):
        files.read(path, ["one"], {})


def test_captions_are_in_one_file_for_each_shard_and_encoded_when_they_change(family, shards: Path) -> None:
    caching = CachingOptions(cache_text_encoder_outputs_to_disk=True)

    def outputs(data: TrainingData) -> torch.Tensor:
        source = TextSource(family, caching, Accelerator(cpu=True), trains=False)
        source.fill_cache(data)
        dataset = BatchDataset(data, seed=1, clock=StepCounter(1, 1, 1), latent_source="memory")
        batch = dataset[MicroBatch(0, 0, 0, (0, 1, 2, 3), 0)]
        found = source.conditioning_of(batch).hidden_states
        with torch.no_grad():
            expected = family.encode_prompts(batch.captions).hidden_states
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        return found

    before = outputs(load(shards))
    names = [f"{number}.tar_sd_te.safetensors" for number in (0, 1)]
    times = files_of(shards)
    assert sorted(times) == names
    assert [len(load_file(shards / name)) for name in names] == [2, 2]  # captions
    assert torch.equal(outputs(load(shards)), before) and files_of(shards) == times
    write_shard(shards, 0, {"0.png": "a fox"})
    assert not torch.equal(outputs(load(shards)), before)
    assert [len(load_file(shards / name)) for name in names] == [2, 2]  # the old caption has gone
    assert files_of(shards)[names[1]] == times[names[1]]


def test_shards_behind_a_url_need_a_folder_for_what_is_cached(shards: Path) -> None:
    options = {"shards": (f"file://{shards}/0.tar",), "resolution": (64, 64)}
    caching = CachingOptions(cache_latents_to_disk=True)
    with pytest.raises(UserError, match="--cache_latents_to_disk: there is no folder"):
        load_training_data(DatasetOptions(**options), caching)
    data = load_training_data(DatasetOptions(**options, shard_cache_dir=str(shards / "c")), caching)
    assert {shard_latents_path(key).parent for key in data.latent_keys()} == {shards / "c"}
