"""Without these small images are enlarged into blurs, or large ones are not trained at a resolution meant for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from library.cli.errors import UserError, plural
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from tests.data.image_files import save_image

# areas 3072, 4096, 4096, 4100 and 8192: 64 x 64 is 4096
SIZES = {"a": (64, 48), "b": (64, 64), "c": (128, 32), "d": (100, 41), "e": (64, 128)}
LARGER = ["d.png", "e.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        save_image(tmp_path / "img" / f"{name}.png", size)
    return tmp_path


def _names(dataset) -> list[str]:
    return [record.key for record in dataset.records]


TOML = """
[general]
resolution = 64
[[datasets]]
skip_image_resolution = {size}
[[datasets.subsets]]
image_dir = '{{dir}}/img'
class_tokens = "x"
"""


@pytest.mark.parametrize(
    ("size", "left"),
    [
        ("64", LARGER),
        ("[64, 64]", LARGER),
        ("[32, 128]", LARGER),  # the same area
        ("'64.0'", LARGER),
        ("[64, 48]", ["b.png", "c.png", *LARGER]),
        ("[4100, 1]", ["e.png"]),
    ],
)
def test_images_of_at_most_that_area_are_left_out(folder, load_toml, size: str, left: list[str]) -> None:
    (dataset,) = load_toml(TOML.format(size=size)).datasets
    assert _names(dataset) == left
    note = f"{plural(len(SIZES) - len(left), 'image is', 'images are')} skipped: not larger than skip_image_resolution"
    assert sum(note in line for line in load_toml(TOML.format(size=size)).bucket_table()) == 1


def test_the_table_says_nothing_of_it_where_it_is_off(folder, load_toml) -> None:
    data = load_toml(TOML.format(size="false"))
    assert data.num_items == len(SIZES) and not any("skip_image" in line for line in data.bucket_table())


def test_a_run_can_be_resumed_with_it_where_it_leaves_nothing_out(folder, load_toml) -> None:
    """States are compared by this digest, also those of versions that did not have the key."""
    off, small = (load_toml(TOML.format(size=size)) for size in ("false", "[3071, 1]"))
    assert small.datasets[0].num_skipped == 0 and small.digest() == off.digest()
    assert load_toml(TOML.format(size="[3072, 1]")).digest() != off.digest()


def test_one_folder_at_two_resolutions(folder, load_toml) -> None:
    """What the larger dataset leaves out the smaller one has; the key of a dataset comes before that of [general]."""
    subset = "[[datasets.subsets]]\nimage_dir = '{dir}/img'\nclass_tokens = 'x'\n"
    general = "[general]\nskip_image_resolution = [64, 48]\n"
    data = load_toml(
        f"{general}[[datasets]]\nresolution = 64\n{subset}"
        f"[[datasets]]\nresolution = 128\nskip_image_resolution = 64\n{subset}"
    )
    assert [_names(dataset) for dataset in data.datasets] == [["b.png", "c.png", *LARGER], LARGER]
    assert len(data.latent_keys()) == 4 + 2  # nothing else is encoded


def test_the_flag_says_the_same_of_folders_and_metadata(folder, load_toml) -> None:
    (folder / "img").rename(folder / "2_x")
    (folder / "meta.json").write_text(json.dumps({name: {"caption": name} for name in SIZES}))
    given = {"resolution": (64, 64), "skip_image_resolution": (64, 64)}
    folders = load_training_data(DatasetOptions(train_data_dir=str(folder), **given))
    assert _names(folders.datasets[0]) == LARGER
    file = {"in_json": str(folder / "meta.json"), "train_data_dir": str(folder / "2_x")}
    metadata = load_training_data(DatasetOptions(**file, **given))
    assert [(record.key, record.caption) for record in metadata.datasets[0].records] == [("d.png", "d"), ("e.png", "e")]


def test_regularisation_images_match_what_is_left(folder, load_toml) -> None:
    """2 training images with 3 repeats; of the 2 regularisation images one is small, the other is used 6 times."""
    save_image(folder / "reg" / "large.png", (128, 128))
    save_image(folder / "reg" / "small.png", (64, 64))
    reg = "[[datasets.subsets]]\nimage_dir = '{dir}/reg'\nclass_tokens = 'y'\nis_reg = true\n"
    (dataset,) = load_toml(TOML.format(size=64) + "num_repeats = 3\n" + reg).datasets
    assert _names(dataset) == [*LARGER, "large.png"] and dataset.uses.tolist() == [3, 3, 6]
    (summary, _) = dataset.subset_summaries
    assert (summary.img_count, dataset.num_skipped) == (2, 4)


def test_images_are_held_out_of_those_that_are_left(folder, load_toml) -> None:
    data = load_toml(TOML.format(size=64) + "validation_split = 0.5\n")
    names = _names(data.datasets[0]) + _names(data.validation.datasets[0])
    assert sorted(names) == LARGER and (data.num_items, data.validation.num_items) == (1, 1)


def test_an_image_that_is_left_out_needs_no_mask(folder, load_toml) -> None:
    for name in ("d", "e"):
        save_image(folder / "masks" / f"{name}.png", SIZES[name])
    masks = "conditioning_data_dir = '{dir}/masks'\n"
    (dataset,) = load_toml(TOML.format(size=64) + masks).datasets
    assert all(record.mask_path for record in dataset.records)
    with pytest.raises(UserError, match=r"no mask found for 2 images: b.png, c.png"):
        load_toml(TOML.format(size="[64, 48]") + masks)


def test_of_legacy_npz_latents_the_original_size_counts(folder, load_toml) -> None:
    """a: latents of a small image that is gone; e: of a large one that is gone; both at the same bucket."""
    for name in ("a", "e"):
        (folder / "img" / f"{name}.png").unlink()
        np.savez(folder / "img" / f"{name}.npz", latents=np.zeros((4, 8, 8)), original_size=np.array(SIZES[name]))
    entries = {name: {"caption": "x", "train_resolution": [64, 64]} for name in ("a", "e")}
    (folder / "meta.json").write_text(json.dumps(entries))
    text = TOML.format(size=64).replace('class_tokens = "x"', "metadata_file = '{dir}/meta.json'")
    (dataset,) = load_toml(text).datasets
    assert [(record.size, record.legacy_npz.bucket) for record in dataset.records] == [((64, 128), (64, 64))]


def test_a_dataset_with_nothing_left_is_refused(folder, load_toml) -> None:
    save_image(folder / "reg" / "0.png", (256, 256))
    reg = "[[datasets.subsets]]\nimage_dir = '{dir}/reg'\nclass_tokens = 'y'\nis_reg = true\n"
    for text in (TOML.format(size="[8192, 1]"), TOML.format(size="[8192, 1]") + reg):
        with pytest.raises(UserError) as caught:
            load_toml(text)
        assert caught.value.message == (
            "datasets[0]: skip_image_resolution [8192, 1] skips all images: none of 5 is larger, by area"
        )
        assert "lower skip_image_resolution" in caught.value.hint
    (folder / "img").rename(folder / "2_x")
    given = {"train_data_dir": str(folder), "resolution": (64, 64), "skip_image_resolution": (128, 64)}
    with pytest.raises(UserError, match="^--train_data_dir: --skip_image_resolution 128,64 skips all images"):
        load_training_data(DatasetOptions(**given))
