"""Without these images are learned too often, too rarely or not at all, and a resumed run goes another way."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from library.data.batches.plan import PlannedDataset, TrainingData, match_regularisation
from library.data.config.config import DatasetConfig, SubsetConfig
from library.data.randomness import derive_seed
from library.data.records import ImageRecord, LegacyNpz, Placement
from tests.data.image_files import save_image


def _record(number: int, size=(64, 64), repeats: int = 1, is_reg: bool = False) -> ImageRecord:
    name = f"{'reg' if is_reg else 'train'}{number}.png"
    return ImageRecord(name, f"folder/{name}", size, 1, "a, b", repeats, int(is_reg), is_reg)


def _dataset(records: list[ImageRecord], batch_size: int = 1, **settings) -> PlannedDataset:
    subsets = (SubsetConfig("s0", "folder/a"), SubsetConfig("s1", "folder/b", is_reg=True))
    return PlannedDataset(DatasetConfig("datasets[0]", (64, 64), batch_size, subsets=subsets, **settings), records)


BUCKETS = {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 8}
SIZES = [(64, 64), (96, 64), (64, 96), (128, 40)]


def _two_datasets() -> TrainingData:
    first = _dataset([_record(number, SIZES[number % 4], 1 + number % 3) for number in range(23)], 4, **BUCKETS)
    second = _dataset([_record(number, SIZES[number % 2]) for number in range(9)], 2)
    return TrainingData((first, second))


def test_every_item_is_in_an_epoch_exactly_once() -> None:
    data = _two_datasets()
    for epoch in range(3):
        plan = data.batches_of_epoch(7, epoch)
        seen = Counter((batch.dataset_index, item) for batch in plan for item in batch.item_indices)
        assert set(seen.values()) == {1}
        assert len(seen) == data.num_items == sum(len(dataset.items) for dataset in data.datasets)
        assert len(plan) == data.num_micro_batches
    uses = Counter(data.datasets[0].items.tolist())
    assert [uses[index] for index in range(23)] == [1 + index % 3 for index in range(23)]


def test_a_batch_is_of_one_bucket_and_no_larger_than_asked() -> None:
    data = _two_datasets()
    for batch in data.batches_of_epoch(7, 0):
        dataset = data.datasets[batch.dataset_index]
        buckets = {dataset.placements[dataset.items[item]].bucket for item in batch.item_indices}
        assert len(buckets) == 1
        assert 1 <= len(batch.item_indices) <= dataset.config.batch_size


def test_the_plan_depends_on_seed_and_epoch_alone() -> None:
    plan = _two_datasets().batches_of_epoch(7, 3)
    data = _two_datasets()
    data.batches_of_epoch(1, 0)
    assert data.batches_of_epoch(7, 3) == plan
    assert data.batches_of_epoch(7, 4) != plan
    assert data.batches_of_epoch(8, 3) != plan


def test_the_plan_stays_the_same_across_versions() -> None:
    plan = TrainingData((_dataset([_record(number) for number in range(6)], 2),)).batches_of_epoch(1, 0)
    assert [batch.item_indices for batch in plan] == [(1, 2), (3, 5), (4, 0)]


def test_the_order_is_that_of_shuffled_buckets_and_then_shuffled_batches() -> None:
    """A run that an earlier version began goes on in the same order."""
    data = _two_datasets()
    for epoch in range(3):
        rng = np.random.RandomState(np.random.MT19937(derive_seed("plan", 7, epoch)))
        batches = []
        for index, dataset in enumerate(data.datasets):
            buckets = [dataset.placements[record].bucket for record in dataset.items]
            for bucket in sorted(set(buckets)):
                items = rng.permutation([item for item, each in enumerate(buckets) if each == bucket]).tolist()
                size = dataset.config.batch_size
                batches += [(index, tuple(items[start : start + size])) for start in range(0, len(items), size)]
        expected = [batches[number] for number in rng.permutation(len(batches))]
        assert [(batch.dataset_index, batch.item_indices) for batch in data.batches_of_epoch(7, epoch)] == expected


def test_positions_count_items_along_the_plan() -> None:
    position = 0
    for index, batch in enumerate(_two_datasets().batches_of_epoch(7, 5)):
        assert (batch.epoch, batch.index, batch.first_position) == (5, index, position)
        position += len(batch.item_indices)


def test_items_and_batches_are_shuffled_and_datasets_mixed() -> None:
    plan = _two_datasets().batches_of_epoch(7, 0)
    order = [batch.dataset_index for batch in plan]
    assert order != sorted(order)
    first_bucket = [item for batch in plan if batch.dataset_index == 1 for item in batch.item_indices]
    assert first_bucket != sorted(first_bucket)


@pytest.mark.parametrize(
    ("train", "train_repeats", "reg", "reg_repeats", "batch_size", "batches", "uses"),
    [
        (4, 2, 3, 1, 1, 16, [3, 3, 2]),
        (4, 2, 3, 1, 4, 4, [3, 3, 2]),
        (5, 1, 2, 1, 2, 5, [3, 2]),
        (2, 1, 5, 1, 1, 4, [1, 1, 0, 0, 0]),
        (3, 3, 2, 2, 4, 5, [5, 4]),
        (1, 10, 3, 1, 3, 7, [4, 3, 3]),
        (6, 1, 0, 1, 4, 2, []),
    ],
)
def test_regularisation_images_match_the_training_images(
    train, train_repeats, reg, reg_repeats, batch_size, batches, uses
) -> None:
    records = [_record(number, repeats=train_repeats) for number in range(train)]
    records += [_record(number, repeats=reg_repeats, is_reg=True) for number in range(reg)]
    dataset = _dataset(records, batch_size)
    counted = Counter(dataset.items.tolist())
    assert [counted[train + number] for number in range(reg)] == uses
    assert dataset.num_micro_batches == batches
    assert (dataset.num_train_images, dataset.num_reg_images) == (train * train_repeats, reg * reg_repeats)


def test_repeats_of_regularisation_images_are_cut_where_room_ends() -> None:
    assert match_regularisation([2, 2, 2], 3) == [2, 1, 0]


def test_the_table_and_the_figures_for_metadata() -> None:
    dataset = _two_datasets().datasets[0]
    assert sum(dataset.bucket_counts.values()) == len(dataset.items) == 45
    assert dataset.bucket_counts[(64, 64)] == 12
    assert list(dataset.bucket_counts) == [(48, 80), (64, 64), (80, 48), (104, 32)]
    # 6 images each of the first three sizes, 5 of the last
    expected = (6 * 0 + 6 * (80 / 48 - 96 / 64) + 6 * (64 / 96 - 48 / 80) + 5 * (104 / 32 - 128 / 40)) / 23
    assert dataset.mean_aspect_error == pytest.approx(expected)
    table = TrainingData((dataset,)).bucket_table()
    assert table[0] == "datasets[0]: 45 items per epoch, batch size 4"
    assert [line.split() for line in table if "64x64" in line] == [["64x64", "6", "12", "3", "100%"]]


def test_the_table_says_what_is_enlarged_and_what_is_unused() -> None:
    thin = _dataset([_record(0, (100, 4)), _record(1)], **BUCKETS, bucket_no_upscale=True)
    assert any("1 image is shorter than bucket_reso_steps 8" in line for line in TrainingData((thin,)).bucket_table())
    many = _dataset([_record(0), *(_record(number, is_reg=True) for number in range(3))])
    assert any("2 regularisation images are not used" in line for line in TrainingData((many,)).bucket_table())


def test_the_table_says_which_buckets_make_tiny_batches() -> None:
    sizes = [(64, 64)] * 4 + [(96, 64)] + [(64, 96)] * 2
    records = [_record(number, size) for number, size in enumerate(sizes)]
    table = TrainingData((_dataset(records, 4, **BUCKETS),)).bucket_table()
    assert [line for line in table if "half of a batch" in line] == [
        "  1 bucket fills less than half of a batch: 80x48 (1 of 4): these images are trained in small batches; add "
        "images, use larger bucket_reso_steps or a smaller batch size"
    ]
    table = TrainingData((_dataset(records, 5, **BUCKETS),)).bucket_table()
    assert any("2 buckets fill less than half of a batch: 48x80 (2 of 5), 80x48 (1 of 5):" in line for line in table)
    table = TrainingData((_dataset(records, 1, **BUCKETS),)).bucket_table()
    assert not any("half of a batch" in line for line in table)


def test_the_table_says_what_matching_does_to_regularisation_images() -> None:
    few = _dataset([*(_record(number) for number in range(7)), *(_record(number, is_reg=True) for number in range(2))])
    table = "\n".join(TrainingData((few,)).bucket_table())
    assert "2 regularisation images are used more often than their repeats, up to 4 times" in table
    assert "to match the 7 training items" in table
    cut = _dataset([*(_record(number) for number in range(3)), *(_record(n, repeats=2, is_reg=True) for n in range(2))])
    table = "\n".join(TrainingData((cut,)).bucket_table())
    assert "1 regularisation image is used fewer times than their repeats" in table and "more often" not in table


def test_legacy_npz_decide_their_bucket() -> None:
    legacy = dataclasses.replace(_record(0, (100, 50)), legacy_npz=LegacyNpz("folder/train0.npz", (80, 48)))
    dataset = _dataset([legacy, _record(1, (100, 50))], **BUCKETS)
    # 100x50 covers 80x48 when it is 48 high, 96 wide; 16 are cut from both sides together
    assert dataset.placements[0] == Placement((80, 48), (96, 48), (8, 0))
    assert dataset.placements[1].bucket == (88, 40)
    assert [key.legacy_npz_path for key in TrainingData((dataset,)).latent_keys()] == ["folder/train0.npz", None]


def test_a_plan_can_be_taken_in_any_piece() -> None:
    plan = _two_datasets().batches_of_epoch(7, 2)
    whole = list(plan)
    assert plan[3:9] == whole[3:9] and plan[-1] == whole[-1] and plan[::-2] == whole[::-2]
    assert plan == whole and plan != whole[1:] and plan[0] == whole[0]
    for outside in (len(plan), -len(plan) - 1):
        with pytest.raises(IndexError):
            plan[outside]
    assert len(TrainingData(()).batches_of_epoch(1, 0)) == 0


def test_each_latent_is_wanted_once(load_toml, make_images, tmp_path: Path) -> None:
    make_images("a", 3, caption="x")
    save_image(tmp_path / "b" / "0.png", (64, 64))
    data = load_toml(
        """
        [[datasets]]
        resolution = 64
        [[datasets.subsets]]
        image_dir = "{dir}/a"
        num_repeats = 5
        flip_aug = true
        [[datasets.subsets]]
        image_dir = "{dir}/b"
        class_tokens = "x"
        [[datasets]]
        resolution = 64
        batch_size = 2
        [[datasets.subsets]]
        image_dir = "{dir}/a"
        [[datasets]]
        resolution = 32
        [[datasets.subsets]]
        image_dir = "{dir}/a"
        """
    )
    keys = data.latent_keys()
    assert len(keys) == len(set(keys)) == 3 * 2 + 1 + 3
    buckets = [key.placement.bucket for key in keys]
    assert buckets == sorted(buckets)
    assert keys == sorted(keys, key=lambda key: (key.placement.bucket, key.path, key.flipped))
