"""Without these what is learned depends on how many processes load images, or on what ran before."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from library.cli.errors import UserError
from library.data.batches.items import draw_items
from library.data.batches.loader import BatchDataset, BatchLoader, make_loader
from library.data.batches.plan import TrainingData
from library.data.caches.latent_cache import write_latents
from library.data.images.decoding import load_image
from library.data.records import Batch, CachedLatents, MicroBatch, StepCounter

CLOCK = StepCounter(group_size=1, steps_per_epoch=20, num_steps=60)

TEXT = """
[[datasets]]
resolution = 64
batch_size = 2
[[datasets.subsets]]
image_dir = "{dir}/猫 train"
num_repeats = 3
flip_aug = true
shuffle_caption = true
keep_tokens = 1
[[datasets.subsets]]
image_dir = "{dir}/reg"
is_reg = true
class_tokens = "dog"
"""


@pytest.fixture
def data(load_toml, make_images) -> TrainingData:
    make_images("猫 train", 5, caption="sks, one, two, three, 四,")
    make_images("reg", 2, size=(80, 60))
    return load_toml(TEXT)


def _dataset(data: TrainingData, **settings) -> BatchDataset:
    defaults = {"seed": 5, "clock": CLOCK, "latent_source": "pixels", "prior_loss_weight": 0.25}
    return BatchDataset(data, **{**defaults, **settings})


def _assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert (batch.micro_batch, batch.captions) == (other.micro_batch, other.captions)
        assert batch.latent_keys == other.latent_keys
        assert torch.equal(batch.loss_weights, other.loss_weights)
        assert torch.equal(batch.pixels, other.pixels)


def test_batches_are_the_same_for_any_number_of_workers(data: TrainingData, monkeypatch) -> None:
    monkeypatch.setattr("library.data.batches.loader.num_cpus", lambda: 2)  # so that 2 means 2 on any machine
    plan = data.batches_of_epoch(5, 0)
    reference = [_dataset(data)[micro_batch] for micro_batch in plan]
    for num_workers in (0, 1, 2):
        loader = make_loader(_dataset(data), plan, num_workers)
        assert loader.num_workers == num_workers
        _assert_same(list(loader), reference)


def test_a_batch_does_not_depend_on_what_was_loaded_before(data: TrainingData) -> None:
    plan = data.batches_of_epoch(5, 2)
    in_order = [_dataset(data)[micro_batch] for micro_batch in plan]
    dataset = _dataset(data)
    backwards = [dataset[micro_batch] for micro_batch in plan[::-1]][::-1]
    _assert_same(backwards, in_order)


def test_what_is_random_depends_on_epoch_and_position(data: TrainingData) -> None:
    item = MicroBatch(epoch=0, index=0, dataset_index=0, item_indices=(0,), first_position=0)
    drawn = {
        name: [_draws(data, dataclasses.replace(item, **{name: number})) for number in range(8)]
        for name in ("epoch", "first_position")
    }
    assert all(len({str(draw) for draw in draws}) > 2 for draws in drawn.values())
    # how the plan was cut into batches changes nothing
    both = _draws(data, dataclasses.replace(item, item_indices=(0, 0), first_position=4))
    assert both == drawn["first_position"][4] + drawn["first_position"][5]


def _draws(data: TrainingData, micro_batch: MicroBatch) -> list[tuple[str, bool]]:
    batch = _dataset(data, latent_source="memory")[micro_batch]
    return list(zip(batch.captions, [key.flipped for key in batch.latent_keys], strict=True))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are other things there")
@pytest.mark.parametrize(("method", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_workers_outlive_the_signals_that_ask_a_run_to_end(data: TrainingData, method, num_workers) -> None:
    """They come to all processes of a group or a job, also while the workers still start."""
    plan = data.batches_of_epoch(5, 0)[:4]
    loader = BatchLoader(_dataset(data), num_workers, persistent=False)
    loader._loader.multiprocessing_context = method
    done = threading.Event()
    signalling = threading.Thread(target=_signal_children, args=(done,))
    signalling.start()
    try:
        batches = list(loader.batches(plan))
    finally:
        done.set()
        signalling.join()
    _assert_same(batches, [_dataset(data)[micro_batch] for micro_batch in plan])


def _signal_children(done: threading.Event) -> None:
    """A worker that is started is sent each signal, every few milliseconds."""
    while not done.wait(0.005):
        for child in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)


def test_persistent_workers_go_on_to_the_next_epoch(data: TrainingData) -> None:
    micro_batches = data.batches_of_epoch(5, 0)[:3]
    loader = make_loader(_dataset(data), micro_batches, 1, persistent=True)
    assert [batch.micro_batch.epoch for batch in loader] == [0, 0, 0]
    micro_batches[:] = data.batches_of_epoch(5, 1)[:4]
    assert [batch.micro_batch.epoch for batch in loader] == [1, 1, 1, 1]


class _Received(list):
    """A batch that says where it is received."""

    def __reduce__(self):
        return _receive, (list(self),)


_RECEIVED: list[list] = []


def _receive(captions: list[str]) -> list[str]:
    _RECEIVED.append(captions)
    return captions


class _TellingDataset(BatchDataset):
    def __getitem__(self, micro_batch: MicroBatch) -> Batch | UserError:
        batch = super().__getitem__(micro_batch)
        assert isinstance(batch, Batch)
        return dataclasses.replace(batch, captions=_Received(batch.captions))


def test_a_batch_is_received_while_the_one_before_is_trained_on(data: TrainingData) -> None:
    """Else each step waits for the milliseconds that it takes."""
    plan, _RECEIVED[:] = data.batches_of_epoch(5, 0)[:4], []
    dataset = _TellingDataset(data, seed=5, clock=CLOCK, latent_source="pixels")
    batches = BatchLoader(dataset, 1, persistent=False).batches(plan)
    first = next(batches)
    deadline = time.monotonic() + 60
    while len(_RECEIVED) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(_RECEIVED) == 2
    rest = list(batches)
    assert [first.captions, *(batch.captions for batch in rest)] == _RECEIVED
    assert [batch.micro_batch for batch in rest] == plan[1:]


def test_flips_and_captions_vary_from_use_to_use_and_epoch_to_epoch(data: TrainingData) -> None:
    dataset = _dataset(data)
    epochs = [[dataset[micro_batch] for micro_batch in data.batches_of_epoch(5, epoch)] for epoch in range(6)]
    keys = [key for batches in epochs for batch in batches for key in batch.latent_keys]
    train = [key for key in keys if "train" in key.path]
    assert 30 <= sum(key.flipped for key in train) <= 60  # of 90
    assert not any(key.flipped for key in keys if "reg" in key.path)
    captions = {caption for batches in epochs for batch in batches for caption in batch.captions if "sks" in caption}
    assert len(captions) > 30
    assert all(caption.startswith("sks, ") and "四" in caption for caption in captions)
    other_seed = [_dataset(data, seed=6)[micro_batch].captions for micro_batch in data.batches_of_epoch(5, 0)]
    assert other_seed != [batch.captions for batch in epochs[0]]


def test_a_batch_holds_the_images_that_its_keys_name(data: TrainingData) -> None:
    for micro_batch in data.batches_of_epoch(5, 0):
        batch = _dataset(data)[micro_batch]
        expected = np.stack([load_image(key).pixels for key in batch.latent_keys])
        assert batch.pixels.shape == (len(batch.captions), 3, 64, 64)
        assert np.array_equal(batch.pixels.numpy(), expected)
        assert batch.latents is None
        is_reg = ["reg" in key.path for key in batch.latent_keys]
        assert batch.loss_weights.tolist() == [0.25 if each else 1.0 for each in is_reg]
        assert [caption == "dog" for caption in batch.captions] == is_reg


def test_a_flipped_image_is_mirrored(data: TrainingData) -> None:
    dataset = data.datasets[0]
    plain, mirrored = (load_image(dataset.latent_key(0, flipped)).pixels for flipped in (False, True))
    assert np.array_equal(mirrored, plain[:, :, ::-1])
    assert not np.array_equal(mirrored, plain)


def test_cached_latents_stand_in_for_pixels(data: TrainingData) -> None:
    plan = data.batches_of_epoch(5, 0)
    memory = _dataset(data, latent_source="memory")[plan[0]]
    assert memory.pixels is None and memory.latents is None
    stored = {key: np.full((4, 8, 8), number, np.float32) for number, key in enumerate(data.latent_keys())}
    write_latents({key: CachedLatents(latents) for key, latents in stored.items()}, "vae")
    for micro_batch in plan:
        batch = _dataset(data, latent_source="disk", fingerprint="vae")[micro_batch]
        reference = _dataset(data)[micro_batch]
        assert batch.pixels is None
        assert (batch.captions, batch.latent_keys) == (reference.captions, reference.latent_keys)
        assert [int(latent[0, 0, 0]) for latent in batch.latents] == [
            int(stored[key][0, 0, 0]) for key in batch.latent_keys
        ]
    reference = _dataset(data)[plan[0]]
    missing = _dataset(data, latent_source="disk", fingerprint="another vae")[plan[0]]
    assert missing.lost == (0, 1) and missing.latents is None  # to be encoded again
    assert torch.equal(missing.pixels, reference.pixels)


def test_an_unreadable_image_comes_back_as_an_error(data: TrainingData, tmp_path: Path) -> None:
    path = tmp_path / "猫 train" / "3.png"
    path.write_bytes(path.read_bytes()[:100])
    plan = data.batches_of_epoch(5, 0)
    for num_workers in (0, 1):
        found = [batch for batch in make_loader(_dataset(data), plan, num_workers) if isinstance(batch, UserError)]
        assert found and all("3.png cannot be read" in error.message for error in found)


def test_a_image_that_changed_since_the_start_is_named(data: TrainingData, make_images) -> None:
    make_images("猫 train", 5, size=(72, 64))
    found = _dataset(data)[data.batches_of_epoch(5, 0)[0]]
    assert isinstance(found, UserError) and "has changed: it was" in found.message


AUGMENTED = """
[general]
resolution = 64
batch_size = 3
enable_bucket = true
min_bucket_reso = 64
[[datasets]]
[[datasets.subsets]]
image_dir = "{dir}/wide"
num_repeats = 4
flip_aug = true
random_crop = true
color_aug = true
shuffle_caption = true
caption_tag_dropout_rate = 0.3
token_warmup_step = 15
caption_prefix = "{x|y}"
enable_wildcard = true
[[datasets.subsets]]
image_dir = "{dir}/faces"
num_repeats = 4
face_crop_aug_range = [1.0, 4.0]
caption_dropout_rate = 0.5
[[datasets.subsets]]
image_dir = "{dir}/masked"
alpha_mask = true
flip_aug = true
resize_interpolation = "box"
"""


@pytest.fixture
def augmented(load_toml, make_images) -> TrainingData:
    make_images("wide", 3, size=(150, 100), caption="{one|two}, three, four, five,")
    for path in make_images("faces", 3, size=(140, 100), caption="a face"):
        path.rename(path.with_name(f"{path.stem}_60_40_30_20.png"))
        path.with_suffix(".caption").rename(path.with_name(f"{path.stem}_60_40_30_20.caption"))
    for path in make_images("masked", 3, size=(150, 100), caption="a cut-out"):
        opaque = Image.open(path).convert("RGBA")
        opaque.putalpha(Image.linear_gradient("L").resize((150, 100)))
        opaque.save(path)
    return load_toml(AUGMENTED)


def test_augmentations_are_the_same_for_any_number_of_workers(augmented: TrainingData, monkeypatch) -> None:
    monkeypatch.setattr("library.data.batches.loader.num_cpus", lambda: 2)
    plan = augmented.batches_of_epoch(5, 0)
    reference = [_dataset(augmented)[micro_batch] for micro_batch in plan]
    drawn = [key.placement for batch in reference for key in batch.latent_keys]
    assert len(set(drawn)) > len(drawn) / 2
    for num_workers in (0, 1, 2):
        batches = list(make_loader(_dataset(augmented), plan, num_workers))
        _assert_same(batches, reference)
        for batch, other in zip(batches, reference, strict=True):
            assert (batch.masks is None) == (other.masks is None)
            assert batch.masks is None or torch.equal(batch.masks, other.masks)


def test_images_without_a_mask_count_fully_beside_those_that_have_one(augmented: TrainingData) -> None:
    seen = set()
    for micro_batch in augmented.batches_of_epoch(5, 0):
        batch = _dataset(augmented)[micro_batch]
        has_mask = [key.alpha_is_mask for key in batch.latent_keys]
        assert (batch.masks is not None) == any(has_mask)
        for row, key in enumerate(batch.latent_keys):
            if batch.masks is None:
                continue
            width, height = key.placement.bucket
            assert batch.masks.shape == (len(batch.captions), 1, height // 8, width // 8)
            expected = load_image(key).mask if key.alpha_is_mask else np.ones((height // 8, width // 8))
            np.testing.assert_array_equal(batch.masks[row, 0], expected)
            seen.add((key.alpha_is_mask, len(set(has_mask))))
    assert seen >= {(True, 2), (False, 2)}


def test_colours_of_a_batch_are_those_that_were_drawn(augmented: TrainingData) -> None:
    num_shifted = 0
    for micro_batch in augmented.batches_of_epoch(5, 0):
        items = draw_items(augmented.datasets[0], micro_batch, 5, CLOCK)
        for item, pixels in zip(items, _dataset(augmented)[micro_batch].pixels, strict=True):
            np.testing.assert_array_equal(pixels, load_image(item.latent_key, item.colour).pixels)
            num_shifted += item.colour is not None
    assert num_shifted


def test_masks_come_from_files_with_their_latents(augmented: TrainingData) -> None:
    keys = [key for key in augmented.latent_keys() if key.alpha_is_mask]
    random = np.random.default_rng(0)
    stored = {}
    for key in keys:
        width, height = (side // 8 for side in key.placement.bucket)
        mask = random.random((height, width), dtype=np.float32)
        if key.flipped:  # a file holds one mask for both
            mask = stored[dataclasses.replace(key, flipped=False)].mask[:, ::-1]
        stored[key] = CachedLatents(np.full((4, height, width), len(stored), np.float32), mask)
    write_latents(stored, "vae")
    dataset = _dataset(augmented, latent_source="disk", fingerprint="vae")
    items = [int(i) for i, record in enumerate(augmented.datasets[0].items) if "masked" in _path(augmented, record)]
    for position, item in enumerate(items * 3):
        batch = dataset[MicroBatch(0, 0, 0, (item,), position)]
        np.testing.assert_array_equal(batch.latents[0], stored[batch.latent_keys[0]].latents)
        np.testing.assert_array_equal(batch.masks[0, 0], stored[batch.latent_keys[0]].mask)


def _path(data: TrainingData, record_index: int) -> str:
    return data.datasets[0].records[record_index].path


def _break(tmp_path: Path, *names: str) -> None:
    for name in names:
        path = tmp_path / "猫 train" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:100])


def test_a_bad_image_is_replaced_by_another_one(data: TrainingData, tmp_path: Path) -> None:
    plan = data.batches_of_epoch(5, 0)
    before = [_dataset(data)[micro_batch] for micro_batch in plan]
    _break(tmp_path, "3", "4")
    bad = {str(tmp_path / "猫 train" / name) for name in ("3.png", "4.png")}
    dataset = _dataset(data, skip_bad_images=True)
    batches = [dataset[micro_batch] for micro_batch in plan]
    for batch, asked_for in zip(batches, before, strict=True):
        wanted = [key.path for key in asked_for.latent_keys]
        assert {message.split(" cannot be read")[0] for message in batch.skipped} >= {
            f"image {path}" for path in wanted if path in bad
        }
        for row, (key, path) in enumerate(zip(batch.latent_keys, wanted, strict=True)):
            assert key.path not in bad
            if path not in bad:  # nothing changes for the others
                assert (key, batch.captions[row]) == (asked_for.latent_keys[row], asked_for.captions[row])
                assert torch.equal(batch.pixels[row], asked_for.pixels[row])
    assert [batch for batch in batches if batch.skipped]
    _assert_same([dataset[micro_batch] for micro_batch in plan[::-1]][::-1], batches)


def test_the_stand_in_is_the_next_good_item_and_is_used_at_the_same_place(data: TrainingData, tmp_path: Path) -> None:
    _break(tmp_path, "1", "2")
    dataset = _dataset(data, skip_bad_images=True)
    records, items = data.datasets[0].records, data.datasets[0].items.tolist()
    item_of = {Path(records[record].path).stem: items.index(record) for record in reversed(items)}
    bad = MicroBatch(epoch=1, index=3, dataset_index=0, item_indices=(item_of["1"],), first_position=7)
    stand_in = dataclasses.replace(bad, item_indices=(item_of["3"],))
    _assert_same([dataclasses.replace(dataset[bad], micro_batch=stand_in)], [dataset[stand_in]])
    assert [message for message in dataset[bad].skipped if "1.png" in message]
    assert not dataset[stand_in].skipped


def test_images_known_to_be_bad_are_not_asked_for(data: TrainingData, tmp_path: Path) -> None:
    known = frozenset(str(tmp_path / "猫 train" / f"{name}.png") for name in "03")
    for source in ("memory", "pixels"):
        dataset = _dataset(data, latent_source=source, skip_bad_images=True, unreadable=known)
        batches = [dataset[micro_batch] for micro_batch in data.batches_of_epoch(5, 0)]
        paths = {key.path for batch in batches for key in batch.latent_keys}
        assert len(paths) > 3 and not paths & known
        assert not any(batch.skipped for batch in batches)  # whoever found them has said so


def test_each_bad_image_is_named_once(data: TrainingData, tmp_path: Path, caplog) -> None:
    _break(tmp_path, "1", "3")
    loader = BatchLoader(_dataset(data, skip_bad_images=True), 1, persistent=False)
    for epoch in (0, 1):
        list(loader.batches(data.batches_of_epoch(5, epoch)))
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 2
    assert all(sum(name in message for message in messages) == 1 for name in ("1.png", "3.png"))


def test_a_bucket_without_a_good_image_ends_the_run(data: TrainingData) -> None:
    everything = frozenset(record.path for record in data.datasets[0].records)
    found = _dataset(data, latent_source="memory", skip_bad_images=True, unreadable=everything)[
        data.batches_of_epoch(5, 0)[0]
    ]
    assert isinstance(found, UserError)
    assert "--skip_bad_images: no image of bucket 64x64" in found.message
