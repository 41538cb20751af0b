"""If these fail, masks weigh the wrong parts of images, or none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.cli.errors import UserError
from library.data.batches.loader import BatchDataset
from library.data.config.options import DatasetOptions
from library.data.images.decoding import load_mask
from library.data.load_data import load_training_data
from library.data.records import StepCounter

TOML = """
[[datasets]]
resolution = [64, 32]
{dataset}
[[datasets.subsets]]
image_dir = '{folder}/images'
conditioning_data_dir = '{folder}/masks'
class_tokens = "fox"
{subset}
"""


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def load(folder: Path, subset: str = "", dataset: str = ""):
    (folder / "data.toml").write_text(TOML.format(folder=folder, subset=subset, dataset=dataset), encoding="utf-8")
    return load_training_data(DatasetOptions(dataset_config=str(folder / "data.toml")))


def mask_of(folder: Path, flipped: bool = False, **options) -> np.ndarray:
    (dataset,) = load(folder, **options).datasets
    return load_mask(dataset.latent_key(0, flipped))


def test_the_mean_of_the_red_channel_over_each_latent(tmp_path):
    """A linear ramp over two images of three channels; published reference values are those of its first corner."""
    ramp = np.linspace(0, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)[0]
    reference = [[0.0092574, 0.0095829, 0.0099084], [0.0300916, 0.0304171, 0.0307426]]
    exact = ramp[0].reshape(8, 8, 8, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(exact[:2, :3], reference, atol=1e-6)
    write(tmp_path / "images" / "a.png", np.zeros((64, 64, 3)))
    write(tmp_path / "masks" / "a.png", np.rint(ramp.transpose(1, 2, 0) * 255))
    found = mask_of(tmp_path, dataset="enable_bucket = false", subset="").squeeze()
    assert found.shape == (4, 8)  # cropped to the middle of 64 x 64
    np.testing.assert_allclose(found, exact[2:6], atol=0.5 / 255)


def test_a_mask_is_cropped_and_mirrored_with_its_image(tmp_path):
    """64 x 48 is cropped in the middle to 64 x 32; a quarter of the width counts."""
    write(tmp_path / "images" / "a.jpg", np.zeros((48, 64, 3)))
    mask = np.zeros((48, 64, 3))
    mask[8:16, :16, 0] = 255  # the first row of latents that is left, its first two columns
    mask[:, :, 1:] = 99  # only red is read
    write(tmp_path / "masks" / "a.png", mask)
    expected = np.zeros((4, 8))
    expected[0, :2] = 1
    np.testing.assert_array_equal(mask_of(tmp_path), expected)
    np.testing.assert_array_equal(mask_of(tmp_path, flipped=True), expected[:, ::-1])


def test_a_mask_may_be_smaller_than_its_image(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "images" / "a.png", np.zeros((128, 256, 3)))
    mask = np.zeros((16, 32))
    mask[:, 16:] = 255
    write(tmp_path / "masks" / "a.png", mask)
    found = mask_of(tmp_path, subset='resize_interpolation = "nearest"')
    np.testing.assert_array_equal(found, np.repeat([[0, 1]], 4, axis=0).repeat(4, axis=1))
    assert "1 mask is of another size than the image, and scaled: a.png" in caplog.text


def test_batches_carry_masks_of_some_subsets(tmp_path):
    write(tmp_path / "images" / "a.png", np.zeros((32, 64, 3)))
    write(tmp_path / "masks" / "a.webp", np.full((32, 64), 51))
    write(tmp_path / "others" / "b.png", np.zeros((32, 64, 3)))
    others = f"[[datasets.subsets]]\nimage_dir = '{tmp_path}/others'\nclass_tokens = 'x'"
    data = load(tmp_path, subset=others, dataset="batch_size = 2")
    dataset = BatchDataset(data, seed=1, clock=StepCounter(1, 1, 1), latent_source="pixels")
    batch = dataset[data.batches_of_epoch(1, 0)[0]]
    pairs = zip(batch.latent_keys, batch.masks, strict=True)
    values = {Path(key.path).name: mask.unique().tolist() for key, mask in pairs}
    assert values == {"a.png": [pytest.approx(0.2, abs=0.01)], "b.png": [1.0]}


def test_what_is_wrong_with_masks_is_named(tmp_path):
    write(tmp_path / "images" / "a.png", np.zeros((32, 64, 3)))
    write(tmp_path / "images" / "b.png", np.zeros((32, 64, 3)))
    with pytest.raises(UserError, match="conditioning_data_dir .*masks does not exist"):
        load(tmp_path)
    write(tmp_path / "masks" / "b.png", np.zeros((64, 64)))
    with pytest.raises(UserError, match=r"no mask found for 1 image: a\.png"):
        load(tmp_path)
    write(tmp_path / "masks" / "a.png", np.zeros((64, 128)))
    with pytest.raises(UserError, match="cannot be used with alpha_mask"):
        load(tmp_path, subset="alpha_mask = true")
    with pytest.raises(UserError, match=r"b\.png is 64x64, but its image is 64x32"):
        load(tmp_path)
    write(tmp_path / "masks" / "b.png", np.zeros((16, 32)))
    (dataset,) = load(tmp_path).datasets
    write(tmp_path / "masks" / "b.png", np.zeros((64, 64)))  # changed after the scan
    load_mask(dataset.latent_key(0, False))
    with pytest.raises(UserError, match=r"b\.png is 64x64, but its image is 64x32"):
        load_mask(dataset.latent_key(1, False))
    metadata = f"[[datasets.subsets]]\nmetadata_file = 'x.json'\nconditioning_data_dir = '{tmp_path}/masks'"
    with pytest.raises(UserError, match="conditioning_data_dir cannot be used with"):
        load(tmp_path, subset=metadata)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes among files on this system")
def test_masks_that_cannot_be_read_are_found_before_training(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write(tmp_path / "images" / f"{name}.png", np.zeros((32, 64, 3)))
    write(tmp_path / "masks" / "a.png", np.zeros((32, 64)))
    (tmp_path / "masks" / "b.png").touch()
    os.mkfifo(tmp_path / "masks" / "c.png")
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert "b.png is empty (0 bytes)" in str(caught.value) and "c.png is not a file" in str(caught.value)
    options = DatasetOptions(dataset_config=str(tmp_path / "data.toml"), skip_bad_images=True)
    (dataset,) = load_training_data(options).datasets
    assert [record.key for record in dataset.records] == ["a.png"]
    assert "skipping 2 images with unreadable masks" in caplog.text


@pytest.fixture
def concepts(tmp_path):
    """Folders of three concepts and one of regularisation images, each with a.png."""
    for folder in ("train/2_fox", "train/3_dog", "train/1_cat", "reg/1_dog"):
        write(tmp_path / folder / "a.png", np.zeros((32, 64, 3)))
    return tmp_path


def load_concepts(folder: Path, masks: str = "masks"):
    given = {"train_data_dir": "train", "reg_data_dir": "reg", "conditioning_data_dir": masks}
    folders = {name: str(folder / each) for name, each in given.items()}
    return load_training_data(DatasetOptions(**folders, resolution=(64, 32)))


def test_masks_of_concept_folders_lie_in_folders_of_the_same_names_or_together(concepts):
    """Also for 1_dog: masks of regularisation images are not read."""
    for name in ("2_fox/a.png", "1_dog/a.png", "a.png"):
        write(concepts / "masks" / name, np.zeros((32, 64)))
    (dataset,) = load_concepts(concepts).datasets
    found = {Path(record.path).parent.name: record.mask_path for record in dataset.records if not record.is_reg}
    masks = concepts / "masks"
    assert {name: Path(path) for name, path in found.items()} == {
        "2_fox": masks / "2_fox" / "a.png", "3_dog": masks / "a.png", "1_cat": masks / "a.png",
    }  # fmt: skip
    assert [record.mask_path for record in dataset.records if record.is_reg] == [None]


def test_what_is_wrong_with_masks_of_concept_folders_is_named_once(concepts):
    with pytest.raises(UserError) as caught:
        load_concepts(concepts)
    assert caught.value.message == f"--conditioning_data_dir {concepts / 'masks'} does not exist"
    write(concepts / "masks" / "a.png", np.zeros((32, 64)))
    (concepts / "masks" / "3_dog").mkdir()
    with pytest.raises(UserError) as caught:
        load_concepts(concepts)
    lacking = f"--conditioning_data_dir {concepts / 'masks' / '3_dog'}: no mask found for 1 image: a.png"
    assert caught.value.message == lacking
