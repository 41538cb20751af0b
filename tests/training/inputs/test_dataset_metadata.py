"""If these fail, other programs show nothing, or something wrong, of the data that a file was trained on."""

import json

import numpy as np
import pytest
from PIL import Image

from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from library.training.inputs.dataset_metadata import dataset_entries

# keys of `ss_datasets` in files that other trainers wrote, with values of types that their readers expect
DATASET = {
    "is_dreambooth": bool, "batch_size_per_device": int, "num_train_images": int, "num_reg_images": int,
    "resolution": list, "enable_bucket": bool, "min_bucket_reso": int, "max_bucket_reso": int, "tag_frequency": dict,
    "bucket_info": dict, "resize_interpolation": type(None), "skip_image_resolution": type(None), "subsets": list,
}  # fmt: skip
SUBSET = {
    "img_count": int, "num_repeats": int, "color_aug": bool, "flip_aug": bool, "random_crop": bool,
    "shuffle_caption": bool, "keep_tokens": int, "keep_tokens_separator": str, "secondary_separator": type(None),
    "enable_wildcard": bool, "caption_prefix": type(None), "caption_suffix": type(None),
    "resize_interpolation": type(None), "image_dir": str, "class_tokens": str, "is_reg": bool,
}  # fmt: skip
ALL_RUNS = {
    "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_tag_frequency", "ss_caption_dropout_rate",
    "ss_caption_dropout_every_n_epochs", "ss_caption_tag_dropout_rate", "ss_face_crop_aug_range",
    "ss_resize_interpolation",
}  # fmt: skip
RUNS_WITHOUT_FILE = {
    "ss_batch_size_per_device", "ss_bucket_info", "ss_bucket_no_upscale", "ss_color_aug", "ss_enable_bucket",
    "ss_flip_aug", "ss_keep_tokens", "ss_max_bucket_reso", "ss_min_bucket_reso", "ss_random_crop", "ss_resolution",
    "ss_shuffle_caption", "ss_total_batch_size",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """cat: three images of 64 x 64 with captions; reg: two without."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("cat", 3), ("reg", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(f"{name}/{number}.png")
            if name == "cat":
                (tmp_path / name / f"{number}.caption").write_text(f"a cat, n{number}")
    (tmp_path / "meta.json").write_text('{"0": {"caption": "a cat", "tags": "red"}, "1": {"tags": "red, sky"}}')
    return tmp_path


def entries_of(text, **flags):
    with open("data.toml", "w") as file:
        file.write(text)
    options = DatasetOptions(dataset_config="data.toml", **flags)
    return dataset_entries(load_training_data(options), options, 1)


def test_datasets_of_folders_say_what_readers_know(folder):
    entries = entries_of(
        """
        [[datasets]]
        resolution = 64
        batch_size = 2
        [[datasets.subsets]]
        image_dir = "cat"
        num_repeats = 2
        class_tokens = "cat"
        flip_aug = true
        shuffle_caption = true
        [[datasets.subsets]]
        image_dir = "reg"
        class_tokens = "animal"
        is_reg = true
        """
    )
    assert set(entries) == ALL_RUNS | {"ss_datasets"}
    assert entries["ss_dataset_dirs"] == {"cat": {"n_repeats": 2, "img_count": 3}}
    assert entries["ss_reg_dataset_dirs"] == {"reg": {"n_repeats": 1, "img_count": 2}}
    (dataset,) = json.loads(json.dumps(entries["ss_datasets"]))
    assert {key: type(dataset[key]) for key in DATASET} == DATASET
    cat, reg = dataset["subsets"]
    assert {key: type(cat[key]) for key in SUBSET} == SUBSET
    assert dataset["is_dreambooth"] and (dataset["num_train_images"], dataset["num_reg_images"]) == (6, 2)
    tags = {"cat": {"a cat": 3, "n0": 1, "n1": 1, "n2": 1}, "reg": {"animal": 2}}
    assert dataset["tag_frequency"] == entries["ss_tag_frequency"] == tags
    bucket = {"resolution": [64, 64], "count": 12}
    assert dataset["bucket_info"] == {"buckets": {"0": bucket}, "mean_img_ar_error": 0.0}
    assert (cat["image_dir"], cat["is_reg"], cat["flip_aug"], cat["img_count"]) == ("cat", False, True, 3)
    assert (reg["class_tokens"], reg["is_reg"], reg["flip_aug"]) == ("animal", True, False)


def test_what_is_said_of_a_subset_is_what_its_user_wrote(folder):
    entries = entries_of(
        """
        [[datasets]]
        resolution = 64
        skip_image_resolution = [64, 32]
        [[datasets.subsets]]
        image_dir = "cat"
        color_aug = true
        random_crop = true
        keep_tokens = 2
        keep_tokens_separator = "|||"
        secondary_separator = ";;;"
        enable_wildcard = true
        caption_prefix = "p"
        caption_suffix = "s"
        caption_dropout_rate = 0.25
        caption_dropout_every_n_epochs = 3
        caption_tag_dropout_rate = 0.5
        token_warmup_min = 2
        token_warmup_step = 0.5
        face_crop_aug_range = [1, 2]
        resize_interpolation = "area"
        alpha_mask = true
        custom_attributes = {artist = "me", on = 2020-01-02}
        """
    )
    (dataset,) = json.loads(json.dumps(entries["ss_datasets"]))
    (subset,) = dataset["subsets"]
    expected = {
        "color_aug": True, "random_crop": True, "keep_tokens": 2, "keep_tokens_separator": "|||",
        "secondary_separator": ";;;", "enable_wildcard": True, "caption_prefix": "p", "caption_suffix": "s",
        "caption_dropout_rate": 0.25, "caption_dropout_every_n_epochs": 3, "caption_tag_dropout_rate": 0.5,
        "token_warmup_min": 2, "token_warmup_step": 0.5, "face_crop_aug_range": [1.0, 2.0],
        "resize_interpolation": "area", "alpha_mask": True, "custom_attributes": {"artist": "me", "on": "2020-01-02"},
    }  # fmt: skip
    assert {key: subset[key] for key in expected} == expected
    assert (dataset["resize_interpolation"], dataset["skip_image_resolution"]) == ("area", [64, 32])


def test_datasets_of_metadata_files_are_named_by_them(folder):
    entries = entries_of(
        "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nmetadata_file = 'meta.json'\nimage_dir = 'cat'\n"
    )
    (dataset,) = entries["ss_datasets"]
    (subset,) = dataset["subsets"]
    assert not dataset["is_dreambooth"]
    assert subset["metadata_file"] == "meta.json"
    assert not {"image_dir", "class_tokens", "is_reg", "custom_attributes"} & set(subset)
    assert dataset["tag_frequency"] == {"meta.json": {"a cat": 1, "red": 2, "sky": 1}}


def test_a_metadata_file_on_the_command_line_has_one_value_each(folder):
    options = DatasetOptions(
        in_json="meta.json", train_data_dir="cat", resolution=(64, 64), train_batch_size=2, color_aug=True,
        face_crop_aug_range=(1.0, 2.0), caption_dropout_rate=0.1,
    )  # fmt: skip
    entries = dataset_entries(load_training_data(options), options, group_size=3)
    assert set(entries) == ALL_RUNS | RUNS_WITHOUT_FILE
    assert entries["ss_dataset_dirs"] == {"meta.json": {"n_repeats": 1, "img_count": 2}}
    assert entries["ss_tag_frequency"] == {"meta.json": {"a cat": 1, "red": 2, "sky": 1}}
    assert (entries["ss_batch_size_per_device"], entries["ss_total_batch_size"]) == (2, 6)
    assert (entries["ss_color_aug"], entries["ss_random_crop"]) == (True, False)
    assert (entries["ss_face_crop_aug_range"], entries["ss_caption_dropout_rate"]) == ((1.0, 2.0), 0.1)


def test_tags_of_folders_that_share_a_name_are_added_up(folder):
    (folder / "other").mkdir()
    (folder / "cat").rename(folder / "other" / "reg")
    entries = entries_of(
        "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = 'reg'\nclass_tokens = 'a cat'\n"
        "[[datasets.subsets]]\nimage_dir = 'other/reg'\n"
        "[[datasets]]\nresolution = 128\n[[datasets.subsets]]\nimage_dir = 'other/reg'\n[[datasets.subsets]]\n"
        "image_dir = 'reg'\nclass_tokens = 'a cat'\n"
    )
    tags = {"a cat": 5, "n0": 1, "n1": 1, "n2": 1}
    assert entries["ss_tag_frequency"] == {"reg": tags}  # not once more for the second size
    assert [dataset["tag_frequency"] for dataset in entries["ss_datasets"]] == [{"reg": tags}] * 2
