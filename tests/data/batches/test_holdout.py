"""If these fail, a validation loss is measured on images that were trained, or on other ones after a restart."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from library.cli.errors import UserError
from library.data.batches.items import draw_items
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from library.data.records import StepCounter
from library.training.inputs.text_outputs import fixed_captions

SUBSET = "[[datasets.subsets]]\nimage_dir = '{}'\n"


def fill(folder: Path, count: int, start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"p{number:02d}.png")
        (folder / f"p{number:02d}.txt").write_text(f"one,two,three,number {number}", encoding="utf-8")
    return folder


def load(tmp_path: Path, toml: str, **flags):
    file = tmp_path / "data.toml"
    file.write_text(toml, encoding="utf-8")
    flags = {"resolution": (32, 32), "caption_extension": ".txt", "min_bucket_reso": 32, **flags}
    return load_training_data(DatasetOptions(dataset_config=str(file), **flags))


def names(data) -> list[str]:
    """The images of all datasets, as often as an epoch uses them."""
    return sorted(dataset.records[item].path for dataset in data.datasets for item in dataset.items)


@pytest.mark.parametrize(
    ("count", "split", "held"),
    [
        (10, 0.1, 1), (10, 0.25, 3), (10, 0.2, 2), (5, 0.1, 1), (4, 0.5, 2), (2, 0.9, 1), (3, 1.0, 3), (12, 0.99, 11),
    ],
)  # fmt: skip
def test_the_share_is_rounded_and_leaves_something_to_train_on(tmp_path, count, split, held):
    """A half counts as one. Only a share of 1 takes every image of a folder."""
    own, other = fill(tmp_path / "a", count), fill(tmp_path / "b", 2)
    subset = SUBSET.format(own) + f"validation_split = {split}\nnum_repeats = 3\n"
    data = load(tmp_path, f"[[datasets]]\n{subset}{SUBSET.format(other)}")
    assert len(names(data.validation)) == held  # each once, whatever the repeats
    assert len(names(data)) == 3 * (count - held) + 2
    assert not set(names(data)) & set(names(data.validation))
    assert {*names(data), *names(data.validation)} == {str(path) for path in tmp_path.glob("*/*.png")}


def test_many_small_folders_hold_out_the_share_of_all_of_them(tmp_path):
    """Of each folder alone a tenth would round to nothing."""
    folders = [fill(tmp_path / f"f{number}", 4) for number in range(5)]
    subsets = "".join(SUBSET.format(folder) for folder in folders)
    data = load(tmp_path, f"[general]\nvalidation_split = 0.1\n[[datasets]]\n{subsets}")
    assert len(names(data.validation)) == 2 and len(names(data)) == 18


def test_who_is_held_out_depends_on_names_and_validation_seed_alone(tmp_path):
    folder = fill(tmp_path / "a", 12)
    toml = f"[[datasets]]\n{SUBSET.format(folder)}"
    first = names(load(tmp_path, toml, validation_split=0.25).validation)
    repeated = f"{toml}num_repeats = 5\nshuffle_caption = true\n"
    assert names(load(tmp_path, repeated, validation_split=0.25, train_batch_size=2).validation) == first
    others = [names(load(tmp_path, toml, validation_split=0.25, validation_seed=seed).validation) for seed in (1, 2, 3)]
    assert any(other != first for other in others)
    for path in folder.glob("p0[0-5].*"):
        if str(path.with_suffix(".png")) not in first:
            path.unlink()
    # with some of the others gone, those that are still held out are of the same ones
    assert set(names(load(tmp_path, toml, validation_split=0.1).validation)) <= set(first)


def test_a_folder_at_two_resolutions_holds_out_the_same_images(tmp_path):
    folder = fill(tmp_path / "a", 10)
    one = f"[[datasets]]\nresolution = 32\n{SUBSET.format(folder)}"
    two = f"[[datasets]]\nresolution = 64\n{SUBSET.format(folder)}"
    data = load(tmp_path, one + two, validation_split=0.2)
    small, large = ({record.path for record in dataset.records} for dataset in data.validation.datasets)
    assert small == large and len(small) == 2
    assert not small & set(names(data))


def test_what_one_subset_holds_out_no_other_trains(tmp_path, caplog):
    folder = fill(tmp_path / "a", 6)
    one = f"[[datasets]]\n{SUBSET.format(folder)}validation_split = 0.5\n"
    two = f"[[datasets]]\nresolution = 64\n{SUBSET.format(folder)}"
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path, one + two)
    assert len(data.validation.datasets) == 1 and len(set(names(data))) == 3
    assert not set(names(data)) & set(names(data.validation))
    assert "datasets[1].subsets[0]: 3 images are not trained, since another subset holds them out" in caplog.text


@pytest.mark.parametrize("linked", ["folder", "files"])
def test_a_held_out_image_is_not_trained_through_a_link(tmp_path, linked):
    own, link = fill(tmp_path / "a", 4), tmp_path / "link"
    if linked == "folder":
        link.symlink_to(own)
    else:
        link.mkdir()
        for path in own.iterdir():
            (link / path.name).symlink_to(path)
    toml = (
        f"[[datasets]]\n{SUBSET.format(own)}validation_split = 0.5\n[[datasets]]\nbatch_size = 2\n{SUBSET.format(link)}"
    )
    data = load(tmp_path, toml)
    trained, held_out = ({os.path.realpath(path) for path in names(each)} for each in (data, data.validation))
    assert len(held_out) == len(trained) == 2 and not trained & held_out


def test_regularisation_images_are_never_held_out(tmp_path):
    own, reg = fill(tmp_path / "a", 4), fill(tmp_path / "r", 4)
    toml = f"[general]\nvalidation_split = 0.5\n[[datasets]]\n{SUBSET.format(own)}{SUBSET.format(reg)}is_reg = true\n"
    data = load(tmp_path, toml)
    assert all(Path(path).parent == own for path in names(data.validation))
    assert len(names(data)) == 2 + 2  # as many regularisation items as are still trained


def test_a_folder_can_be_for_validation_alone(tmp_path):
    own, other = fill(tmp_path / "a", 3), fill(tmp_path / "b", 2)
    toml = f"[[datasets]]\n{SUBSET.format(own)}[[datasets]]\nbatch_size = 2\n{SUBSET.format(other)}"
    data = load(tmp_path, toml + "validation_split = 1.0\n")
    assert len(data.datasets) == 1 and {Path(path).parent for path in names(data)} == {own}
    assert {Path(path).parent for path in names(data.validation)} == {other}


@pytest.mark.parametrize(
    ("count", "split", "message"), [(4, 0.1, "holds out no image"), (3, 1.0, "holds out every image")]
)
def test_a_split_that_leaves_one_side_empty_is_refused(tmp_path, count, split, message):
    folder = fill(tmp_path / "a", count)
    with pytest.raises(UserError, match=message):
        load(tmp_path, f"[[datasets]]\n{SUBSET.format(folder)}", validation_split=split)


def test_nothing_about_a_held_out_image_is_random(tmp_path):
    """Its caption is written as those that are shuffled are, with all tags, and its place is that without chance."""
    folder = fill(tmp_path / "a", 4)
    subset = (
        "validation_split = 0.5\nflip_aug = true\nrandom_crop = true\ncolor_aug = true\nshuffle_caption = true\n"
        "caption_dropout_rate = 0.9\ncaption_tag_dropout_rate = 0.9\ntoken_warmup_step = 100\n"
    )
    data = load(tmp_path, f"[[datasets]]\n{SUBSET.format(folder)}{subset}")
    (dataset,) = data.validation.datasets
    for seed in range(20):
        for batch in data.validation.batches_of_epoch(0, 0):
            (item,) = draw_items(dataset, batch, seed, StepCounter(1, 2, 1))
            number = int(Path(item.latent_key.path).stem[1:])
            assert item.caption == f"one, two, three, number {number}"
            assert not item.latent_key.flipped and item.colour is None and item.latent_key.placement.crop == (0, 0)


def test_caches_hold_what_validation_needs(tmp_path):
    folder = fill(tmp_path / "a", 6)
    data = load(tmp_path, f"[[datasets]]\n{SUBSET.format(folder)}", validation_split=0.5)
    everything = {str(path) for path in folder.glob("*.png")}
    assert {key.path for key in data.latent_keys()} == everything
    assert set(fixed_captions(data)) == everything
