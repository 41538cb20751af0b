"""Without these, cached latents are not those of the run without a cache, or an interrupted night of work is lost."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from library.cli.errors import UserError
from library.data.batches.loader import BatchDataset
from library.data.batches.plan import TrainingData
from library.data.caches.latent_cache import cache_path, latent_seed, read_latents
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.images.decoding import load_image
from library.data.load_data import load_training_data
from library.data.records import Batch, LatentKey, MicroBatch, StepCounter
from library.models.family import ModelFamily
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.training.inputs.latents import LatentProvider
from tests import programs

ROOT = Path(__file__).resolve().parents[3]
BASE = ROOT / "examples" / "quickstart" / "base"

TOML = """
[[datasets]]
resolution = 64
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 8
[[datasets.subsets]]
image_dir = "{folder}"
class_tokens = "x"
flip_aug = {flip}
alpha_mask = {mask}
"""


@pytest.fixture(scope="module")
def family() -> ModelFamily:
    return load_family(ModelOptions(pretrained_model_name_or_path=str(BASE)))


def make_images(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> list[Path]:
    folder.mkdir(parents=True)
    paths = []
    for number, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
        paths.append(folder / f"{number:02d}.png")
        Image.fromarray(pixels, mode).save(paths[-1])
    return paths


def damage(path: Path) -> None:
    """In the middle, where only decoding finds it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    path.write_bytes(content)


def load_data(folder: Path, flip: bool = False, mask: bool = False) -> TrainingData:
    file = folder.with_suffix(".toml")
    text = TOML.format(folder=folder.as_posix(), flip=str(flip).lower(), mask=str(mask).lower())
    file.write_text(text, encoding="utf-8")
    return load_training_data(DatasetOptions(dataset_config=str(file)))


def source_of(family: ModelFamily, skip_unreadable: bool = False, **options) -> LatentProvider:
    return LatentProvider(family, CachingOptions(**options), Accelerator(cpu=True), skip_unreadable=skip_unreadable)


def batch_of(keys: list[LatentKey], **tensors) -> Batch:
    return Batch(
        micro_batch=MicroBatch(0, 0, 0, (0,), 0), captions=["x"] * len(keys), latent_keys=list(keys),
        loss_weights=torch.ones(len(keys)), **tensors,
    )  # fmt: skip


MIXED = [(64, 64), (48, 80), (64, 64), (80, 48), (48, 80), (64, 64), (48, 80)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("where", ["cache_latents", "cache_latents_to_disk"])
def test_cached_latents_are_bit_for_bit_those_that_are_encoded_one_chunk_after_the_other(
    family, tmp_path, where, batch_size
):
    make_images(tmp_path / "data", MIXED)
    data = load_data(tmp_path / "data", flip=True)
    source = source_of(family, vae_batch_size=batch_size, **{where: True})
    assert source.fill_caches(data) == frozenset()
    by_bucket: dict[tuple[int, int], list[LatentKey]] = {}
    for key in data.latent_keys():
        by_bucket.setdefault(key.placement.bucket, []).append(key)
    assert len(by_bucket) == 3
    for keys in by_bucket.values():
        for start in range(0, len(keys), batch_size):
            chunk = keys[start : start + batch_size]
            pixels = torch.stack([torch.from_numpy(load_image(key).pixels) for key in chunk])
            expected = family.encode_images(pixels, [latent_seed(key) for key in chunk])
            from_disk = [read_latents(key, source.fingerprint) for key in chunk]
            tensors = {}
            if where == "cache_latents_to_disk":
                tensors["latents"] = torch.from_numpy(np.stack([each.latents for each in from_disk]))
            assert torch.equal(source.latents_of(batch_of(chunk, **tensors)), family.scale_latents(expected))


@pytest.mark.parametrize("damage_file", [Path.unlink, lambda path: path.write_bytes(b"PK broken")])
def test_cached_latents_lost_to_another_process_are_encoded_again_and_written(family, tmp_path, damage_file, caplog):
    make_images(tmp_path / "data", [(64, 64)] * 3)
    data, source = load_data(tmp_path / "data"), source_of(family, cache_latents_to_disk=True)
    source.fill_caches(data)
    dataset = BatchDataset(
        data, seed=1, clock=StepCounter(1, 1, 1), latent_source="disk", fingerprint=source.fingerprint
    )
    three = MicroBatch(0, 0, 0, (0, 1, 2), 0)
    whole = source.latents_of(dataset[three])
    damage_file(cache_path(data.latent_keys()[1]))
    batch = dataset[three]
    assert batch.lost == (1,)
    assert torch.equal(source.latents_of(batch), whole)
    assert "01.png were removed or broken during training: encoded again" in caplog.text
    assert dataset[three].lost == ()


def test_what_a_kill_while_caching_left_is_removed_when_no_other_run_can_be_using_it(family, tmp_path):
    make_images(tmp_path / "data", [(64, 64)])
    old, new, other = (tmp_path / "data" / name for name in (
        ".tmp-0123456789abcdef.npz", ".tmp-0123456789abcdee.npz", ".tmp-mine.npz"
    ))  # fmt: skip
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, time.time() - 7200))
    source_of(family, cache_latents_to_disk=True).fill_caches(load_data(tmp_path / "data"))
    assert (old.exists(), new.exists(), other.exists()) == (False, True, True)


def test_masks_are_cached_with_the_latents_and_mirrored_with_the_image(family, tmp_path):
    make_images(tmp_path / "data", [(64, 64), (64, 64)], "RGBA")
    data = load_data(tmp_path / "data", flip=True, mask=True)
    keys = data.latent_keys()
    alpha = np.asarray(Image.open(tmp_path / "data" / "00.png").getchannel("A")).astype(np.float64) / 255
    upright = alpha.reshape(8, 8, 8, 8).mean(axis=(1, 3))  # the share of each latent that is opaque
    in_memory = source_of(family, cache_latents=True)
    in_memory.fill_caches(data)
    on_disk = source_of(family, cache_latents_to_disk=True)
    on_disk.fill_caches(data)
    for key in keys[:2]:
        expected = upright[:, ::-1] if key.flipped else upright
        np.testing.assert_allclose(in_memory.masks_of(batch_of([key]))[0, 0].numpy(), expected, atol=1e-6)
        np.testing.assert_array_equal(read_latents(key, on_disk.fingerprint).mask, load_image(key).mask)
    assert in_memory.masks_of(batch_of(keys)).shape == (4, 1, 8, 8)
    given = torch.rand(2, 1, 8, 8)
    assert torch.equal(on_disk.masks_of(batch_of(keys[:2], masks=given)), given)


def test_images_without_masks_count_fully_and_batches_of_them_have_none(family, tmp_path):
    make_images(tmp_path / "data", [(64, 64)] * 2)
    make_images(tmp_path / "masked", [(64, 64)], "RGBA")
    source = source_of(family, cache_latents=True)
    plain, masked = load_data(tmp_path / "data"), load_data(tmp_path / "masked", mask=True)
    source.fill_caches(plain)
    source.fill_caches(masked)
    keys = [*plain.latent_keys(), *masked.latent_keys()]
    assert source.masks_of(batch_of(keys[:2])) is None
    masks = source.masks_of(batch_of(keys))
    assert (masks[:2] == 1).all() and (masks[2] < 1).any()


def test_legacy_npz_are_used_as_they_are_beside_images_that_are_encoded(family, tmp_path):
    make_images(tmp_path / "data", [(64, 64)] * 3)
    keys = load_data(tmp_path / "data").latent_keys()
    legacy = np.random.default_rng(0).standard_normal((4, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data" / "01.npz", latents=legacy)
    keys[1] = dataclasses.replace(keys[1], path="gone.png", legacy_npz_path=str(tmp_path / "data" / "01.npz"))
    pixels = torch.stack([torch.from_numpy(load_image(key).pixels) for key in (keys[0], keys[2])])
    encoded = [family.encode_images(pixels[i : i + 1], [latent_seed(keys[2 * i])])[0] for i in range(2)]
    expected = family.scale_latents(torch.stack([encoded[0], torch.from_numpy(legacy), encoded[1]]))
    batch = batch_of(keys, pixels=pixels, latents=torch.from_numpy(legacy[None]))
    assert torch.equal(source_of(family).latents_of(batch), expected)

    class Data:
        latent_keys = staticmethod(lambda: keys)

    source = source_of(family, cache_latents=True)
    assert source.fill_caches(Data) == frozenset()
    assert torch.equal(source.latents_of(batch_of(keys, latents=torch.from_numpy(legacy[None]))), expected)
    (tmp_path / "data" / "01.npz").unlink()
    for options in ({}, {"cache_latents": True}, {"cache_latents_to_disk": True}):
        with pytest.raises(UserError, match="latents not found: .*01.npz"):
            source_of(family, **options).fill_caches(Data)


def test_latents_of_another_kind_of_model_are_refused(family, tmp_path):
    make_images(tmp_path / "data", [(64, 64)])
    keys = load_data(tmp_path / "data").latent_keys()
    source = source_of(family, cache_latents_to_disk=True)
    with pytest.raises(UserError, match="00.png have 16 channels, the model takes 4"):
        source.latents_of(batch_of(keys, latents=torch.zeros(1, 16, 8, 8)))


@pytest.mark.parametrize("where", ["cache_latents", "cache_latents_to_disk"])
def test_a_bad_image_is_named_and_skipped_only_where_asked_for(family, tmp_path, where, caplog):
    paths = make_images(tmp_path / "data", [(64, 64)] * 6)
    for path in (paths[1], paths[4]):
        damage(path)
    data = load_data(tmp_path / "data", flip=True)
    with pytest.raises(UserError, match="01.png cannot be read"):
        source_of(family, **{where: True}).fill_caches(data)
    source = source_of(family, skip_unreadable=True, **{where: True})
    with caplog.at_level(logging.WARNING):
        assert source.fill_caches(data) == {str(paths[1]), str(paths[4])}
    (record,) = [record for record in caplog.records if "cannot be read" in record.getMessage()]
    assert "2 images" in record.getMessage()
    assert "01.png" in record.getMessage() and "04.png" in record.getMessage()
    good = [key for key in data.latent_keys() if Path(key.path) not in (paths[1], paths[4])]
    assert len(good) == 8
    if where == "cache_latents":
        assert source.latents_of(batch_of(good)).shape == (8, 4, 8, 8)
    else:
        assert all(read_latents(key, source.fingerprint) is not None for key in good)


def test_a_full_disk_is_said_and_leaves_whole_files_only(family, tmp_path, monkeypatch):
    make_images(tmp_path / "data", [(64, 64)] * 6)
    data = load_data(tmp_path / "data")
    save, saved = np.savez, []

    def nearly_full_disk(file, **arrays) -> None:
        if len(saved) == 3:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        saved.append(save(file, **arrays))

    monkeypatch.setattr(np, "savez", nearly_full_disk)
    source = source_of(family, cache_latents_to_disk=True)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        source.fill_caches(data)
    names = sorted(path.name for path in (tmp_path / "data").iterdir() if path.suffix != ".png")
    assert names == [f"{number:02d}_0064x0064_sd.npz" for number in range(3)]


def test_files_of_another_program_are_trusted_or_made_anew_with_one_line(family, tmp_path, caplog):
    make_images(tmp_path / "data", [(64, 64)] * 3)
    data = load_data(tmp_path / "data")
    for key in data.latent_keys():
        np.savez(Path(key.path).with_name(f"{Path(key.path).stem}_0064x0064_sd.npz"),
                 latents_8x8=np.full((4, 8, 8), 7, np.float32))  # fmt: skip
    trusting = source_of(family, cache_latents_to_disk=True, skip_cache_check=True)
    trusting.fill_caches(data)
    assert all((read_latents(key, trusting.fingerprint).latents == 7).all() for key in data.latent_keys())
    checking = source_of(family, cache_latents_to_disk=True)
    with caplog.at_level(logging.WARNING):
        checking.fill_caches(data)
    assert [record.getMessage() for record in caplog.records if "re-encoding" in record.getMessage()] == [
        "re-encoding the cached latents of 3 images: 3 from another program, which does not record what they were made "
        "from (--skip_cache_check trusts them)"
    ]
    assert not any((read_latents(key, checking.fingerprint).latents == 7).all() for key in data.latent_keys())


def test_a_copied_dataset_is_not_encoded_again_and_is_noted_as_checked(family, tmp_path):
    paths = make_images(tmp_path / "data", [(64, 64)] * 3)
    source_of(family, cache_latents_to_disk=True).fill_caches(load_data(tmp_path / "data"))
    before = [read_latents(key, None).latents for key in load_data(tmp_path / "data").latent_keys()]
    for path in paths:
        os.utime(path, ns=(0, 10**18))
    data = load_data(tmp_path / "data")
    source = source_of(family, cache_latents_to_disk=True)
    source._encode = None  # nothing is to be encoded
    source.fill_caches(data)
    for path in paths:
        path.write_bytes(b"")  # training looks at the notes alone from now on
    after = [read_latents(key, source.fingerprint).latents for key in data.latent_keys()]
    np.testing.assert_array_equal(before, after)


SLOW_RUN = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {here!r}]
from test_latents import BASE, ModelOptions, load_data, load_family, source_of
family = load_family(ModelOptions(pretrained_model_name_or_path=str(BASE)))
encode_images = family.encode_images
def slowly(pixels, seeds):
    time.sleep(0.2)
    return encode_images(pixels, seeds)
family.encode_images = slowly
source_of(family, cache_latents_to_disk=True).fill_caches(load_data(Path({folder!r}), flip=True))
"""


def test_a_killed_run_goes_on_where_it_stopped(family, tmp_path):
    folder = tmp_path / "data"
    make_images(folder, [(64, 64)] * 40)
    code = SLOW_RUN.format(root=str(ROOT), here=str(Path(__file__).parent), folder=str(folder))
    process = programs.start(["-c", code])
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*_sd.npz"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    data = load_data(folder, flip=True)
    source = source_of(family, cache_latents_to_disk=True)
    sound = {key for key in data.latent_keys() if read_latents(key, source.fingerprint) is not None}
    assert 5 <= len(sound) < 80
    encoded = []
    encode = source._encode

    def count(pixels, keys):
        encoded.extend(keys)
        return encode(pixels, keys)

    source._encode = count
    source.fill_caches(data)
    assert set(encoded) == set(data.latent_keys()) - sound and len(encoded) == 80 - len(sound)
    for key in data.latent_keys():
        expected = family.encode_images(torch.from_numpy(load_image(key).pixels)[None], [latent_seed(key)])[0]
        np.testing.assert_array_equal(read_latents(key, source.fingerprint).latents, expected.numpy())


SHARED_RUN = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {here!r}]
import library.training.inputs.latents as latents
latents._LATENTS_IN_MESSAGE = 2
from accelerate import Accelerator
from test_latents import BASE, ModelOptions, batch_of, load_data, load_family, source_of
family = load_family(ModelOptions(pretrained_model_name_or_path=str(BASE)))
data = load_data(Path({folder!r}))
encode_images, counts = family.encode_images, []
family.encode_images = lambda pixels, seeds: counts.append(len(seeds)) or encode_images(pixels, seeds)
source = source_of(family, skip_unreadable=True, {where}=True)
bad = source.fill_caches(data)
assert Accelerator().num_processes == 2 and sum(counts) in (4, 5), counts
assert [Path(path).name for path in bad] == ["03.png"], bad
keys = [key for key in data.latent_keys() if key.path not in bad]
if source.kind == "memory":
    import torch
    from library.data.images.decoding import load_image
    from library.data.caches.latent_cache import latent_seed
    expected = [encode_images(torch.from_numpy(load_image(key).pixels)[None], [latent_seed(key)]) for key in keys]
    assert torch.equal(source.latents_of(batch_of(keys)), family.scale_latents(torch.cat(expected)))
Path({folder!r}, f"right-{{Accelerator().process_index}}").touch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cache_latents", "cache_latents_to_disk"])
def test_two_processes_share_the_work_and_both_have_all_latents(tmp_path, where):
    folder = tmp_path / "data"
    paths = make_images(folder, [(64, 64)] * 10)
    damage(paths[3])
    script = tmp_path / "script.py"
    here = str(Path(__file__).parent)
    script.write_text(SHARED_RUN.format(root=str(ROOT), here=here, folder=str(folder), where=where))
    start = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    ]  # fmt: skip
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*start, str(script)], capture_output=True, text=True, timeout=300, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in folder.glob("right-*")) == ["right-0", "right-1"]
    if where == "cache_latents_to_disk":
        assert len(list(folder.glob("*_sd.npz"))) == 9
