"""Without these what is learned depends on how many processes load pictures, or on what ran before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from library.cli.errors import UserError
from library.data.dataset import BatchDataset, make_loader
from library.data.images import load_image
from library.data.latent_cache import write_latents
from library.data.plan import TrainingData
from library.data.records import Batch, CachedLatents, MicroBatch, StepClock

CLOCK = StepClock(group_size=1, steps_per_epoch=20, num_steps=60)

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
def data(load_toml, make_pictures) -> TrainingData:
    make_pictures("猫 train", 5, caption="sks, one, two, three, 四,")
    make_pictures("reg", 2, size=(80, 60))
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
    monkeypatch.setattr("library.data.dataset._num_cpus", lambda: 2)  # so that 2 means 2 on any machine
    plan = data.plan(5, 0)
    reference = [_dataset(data)[micro_batch] for micro_batch in plan]
    for num_workers in (0, 1, 2):
        loader = make_loader(_dataset(data), plan, num_workers)
        assert loader.num_workers == num_workers
        _assert_same(list(loader), reference)


def test_a_batch_does_not_depend_on_what_was_loaded_before(data: TrainingData) -> None:
    plan = data.plan(5, 2)
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


def test_spawned_workers_give_the_same_batches(data: TrainingData) -> None:
    plan = data.plan(5, 0)[:2]
    loader = make_loader(_dataset(data), plan, 1)
    loader.multiprocessing_context = "spawn"
    _assert_same(list(loader), [_dataset(data)[micro_batch] for micro_batch in plan])


def test_persistent_workers_go_on_to_the_next_epoch(data: TrainingData) -> None:
    micro_batches = data.plan(5, 0)[:3]
    loader = make_loader(_dataset(data), micro_batches, 1, persistent=True)
    assert [batch.micro_batch.epoch for batch in loader] == [0, 0, 0]
    micro_batches[:] = data.plan(5, 1)[:4]
    assert [batch.micro_batch.epoch for batch in loader] == [1, 1, 1, 1]


def test_flips_and_captions_vary_from_use_to_use_and_epoch_to_epoch(data: TrainingData) -> None:
    dataset = _dataset(data)
    epochs = [[dataset[micro_batch] for micro_batch in data.plan(5, epoch)] for epoch in range(6)]
    keys = [key for batches in epochs for batch in batches for key in batch.latent_keys]
    train = [key for key in keys if "train" in key.path]
    assert 30 <= sum(key.flipped for key in train) <= 60  # of 90
    assert not any(key.flipped for key in keys if "reg" in key.path)
    captions = {caption for batches in epochs for batch in batches for caption in batch.captions if "sks" in caption}
    assert len(captions) > 30
    assert all(caption.startswith("sks, ") and "四" in caption for caption in captions)
    other_seed = [_dataset(data, seed=6)[micro_batch].captions for micro_batch in data.plan(5, 0)]
    assert other_seed != [batch.captions for batch in epochs[0]]


def test_a_batch_holds_the_pictures_that_its_keys_name(data: TrainingData) -> None:
    for micro_batch in data.plan(5, 0):
        batch = _dataset(data)[micro_batch]
        expected = np.stack([load_image(key).pixels for key in batch.latent_keys])
        assert batch.pixels.shape == (len(batch.captions), 3, 64, 64)
        assert np.array_equal(batch.pixels.numpy(), expected)
        assert batch.latents is None
        is_reg = ["reg" in key.path for key in batch.latent_keys]
        assert batch.loss_weights.tolist() == [0.25 if each else 1.0 for each in is_reg]
        assert [caption == "dog" for caption in batch.captions] == is_reg


def test_a_flipped_picture_is_mirrored(data: TrainingData) -> None:
    dataset = data.datasets[0]
    plain, mirrored = (load_image(dataset.latent_key(0, flipped)).pixels for flipped in (False, True))
    assert np.array_equal(mirrored, plain[:, :, ::-1])
    assert not np.array_equal(mirrored, plain)


def test_cached_latents_stand_in_for_pixels(data: TrainingData) -> None:
    plan = data.plan(5, 0)
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
    missing = _dataset(data, latent_source="disk", fingerprint="another vae")[plan[0]]
    assert isinstance(missing, UserError) and "cached latents" in missing.message


def test_an_unreadable_picture_comes_back_as_an_error(data: TrainingData, tmp_path: Path) -> None:
    path = tmp_path / "猫 train" / "3.png"
    path.write_bytes(path.read_bytes()[:100])
    plan = data.plan(5, 0)
    for num_workers in (0, 1):
        found = [batch for batch in make_loader(_dataset(data), plan, num_workers) if isinstance(batch, UserError)]
        assert found and all("3.png cannot be read" in error.message for error in found)


def test_a_picture_that_changed_since_the_start_is_named(data: TrainingData, make_pictures) -> None:
    make_pictures("猫 train", 5, size=(72, 64))
    found = _dataset(data)[data.plan(5, 0)[0]]
    assert isinstance(found, UserError) and "has changed: it was" in found.message
