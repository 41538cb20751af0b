"""Without these images or captions are lost, or a wrong folder is found out only in the middle of training."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from library.cli.errors import UserError
from library.data.config.config import SubsetConfig
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from library.data.scan.folders import find_concept_folders, scan_folder
from tests.data.image_files import save_image


def _scan(folder: Path, **settings):
    return scan_folder(SubsetConfig("datasets[0].subsets[0]", str(folder), **settings), 0)


def _problem(folder: Path, **settings) -> str:
    with pytest.raises(UserError) as caught:
        _scan(folder, **settings)
    return str(caught.value)


def test_images_of_all_endings_are_found_in_order_and_caches_are_not(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.jpeg", "d.WebP", "e.bmp", "猫.png"):
        save_image(tmp_path / name, (40, 24))
    for name in ("a_0040x0024_sd.npz", "note.txt", "._a.png", "a.caption"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    records = _scan(tmp_path, class_tokens="cat", num_repeats=3)
    assert [record.key for record in records] == ["a.png", "b.JPG", "c.jpeg", "d.WebP", "e.bmp", "猫.png"]
    assert {record.size for record in records} == {(40, 24)}
    assert [record.caption for record in records] == ["x"] + ["cat"] * 5
    assert records[0].num_repeats == 3
    assert records[0].mtime_ns == os.stat(tmp_path / "a.png").st_mtime_ns


def test_the_size_is_the_one_after_exif_orientation(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for ending in ("jpg", "png", "webp"):
            save_image(tmp_path / f"{orientation}.{ending}", (40, 24), exif=exif.tobytes())
    for record in _scan(tmp_path, class_tokens="x"):
        assert record.size == ((24, 40) if int(record.key[0]) >= 5 else (40, 24)), record.key


def test_captions_come_from_the_file_or_else_from_class_tokens(tmp_path: Path, caplog) -> None:
    for name in ("a", "b", "c", "d"):
        save_image(tmp_path / f"{name}.png", (8, 8))
    (tmp_path / "a.caption").write_bytes("\ufeff 猫, one \r\ntwo".encode())
    (tmp_path / "b.txt").write_text("other ending")
    (tmp_path / "c.caption").write_text("")
    (tmp_path / "d.caption").write_text("\n\nthird line")
    with caplog.at_level(logging.WARNING):
        records = _scan(tmp_path, class_tokens="cls")
    assert [record.caption for record in records] == ["猫, one", "cls", "", ""]
    assert "2 empty captions: c.caption, d.caption" in caplog.text


@pytest.mark.parametrize(
    ("place", "extension", "files", "missing", "hint"),
    [
        (
            "datasets[0].subsets[0]",
            ".caption",
            [],
            "abc",
            "set caption_extension to the extension of the caption files, if there are any",
        ),
        (
            "--train_data_dir",
            ".caption",
            ["a.caption"],
            "bc",
            "set --caption_extension to the extension of the caption files, if there are any",
        ),
        (
            "--train_data_dir",
            ".caption",
            ["b.txt", "c.cap"],
            "abc",
            "1 have a .txt file, which is not",
        ),
        (
            "datasets[0].subsets[0]",
            ".cap",
            ["a.cap", "b.txt", "c.caption"],
            "bc",
            "1 have a .txt file and 1 have a .c",
        ),
        ("--train_data_dir", ".caption", ["a.caption", "a.txt", "b.caption"], "c", "if there are any"),
    ],
)
def test_images_without_caption_and_class_tokens_are_counted_in_one_warning(
    tmp_path: Path, caplog, place: str, extension: str, files: list[str], missing: str, hint: str
) -> None:
    for name in "abc":
        save_image(tmp_path / f"{name}.png", (8, 8))
    for name in files:
        (tmp_path / name).write_text("a cat")
    with caplog.at_level(logging.WARNING):
        records = scan_folder(SubsetConfig(place, str(tmp_path), caption_extension=extension), 0)
    assert [record.caption for record in records] == ["" if name in missing else "a cat" for name in "abc"]
    (message,) = caplog.messages
    names = ", ".join(f"{name}.png" for name in missing)
    assert message.startswith(f"{place}: {len(missing)} of 3 images in {tmp_path} have no {extension} file and no")
    assert f"their caption is empty: {names}; " in message and hint.replace("endings", "caption files") in message


def test_of_many_images_without_caption_the_first_are_named(tmp_path: Path, caplog) -> None:
    for number in range(9):
        save_image(tmp_path / f"{number}.png", (8, 8))
    with caplog.at_level(logging.WARNING):
        _scan(tmp_path)
    (message,) = caplog.messages
    assert "9 of 9 images" in message and ": 0.png, 1.png, 2.png, 3.png, 4.png and 4 more; " in message


def test_everything_wrong_in_a_folder_is_reported_together(tmp_path: Path) -> None:
    save_image(tmp_path / "good.png", (8, 8))
    (tmp_path / "good.caption").write_text("x")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:20])
    save_image(tmp_path / "latin.png", (8, 8))
    (tmp_path / "latin.caption").write_bytes(b"caf\xe9")
    os.symlink(tmp_path / "gone.png", tmp_path / "link.png")
    text = _problem(tmp_path)
    expected = ["empty.png is empty (0 bytes)", "text.jpg cannot be read", "cut.png cannot be read"]
    expected += ["latin.caption is not UTF-8", "link.png cannot be read"]
    for part in expected:
        assert text.count(part) == 1, part
    assert "good.png" not in text


def test_a_image_with_a_face_in_its_name_shares_the_caption_of_its_stem(tmp_path: Path) -> None:
    names = ["photo_10_20_30_40", "photo_1_2_3_4", "photo_1_2", "photo"]
    for name in names:
        save_image(tmp_path / f"{name}.png", (64, 64))
    (tmp_path / "photo.caption").write_text("shared")
    (tmp_path / "photo_1_2_3_4.caption").write_text("own")
    captions = {record.key: record.caption for record in _scan(tmp_path, class_tokens="x")}
    assert captions == {
        "photo.png": "shared", "photo_10_20_30_40.png": "shared", "photo_1_2_3_4.png": "own", "photo_1_2.png": "x",
    }  # fmt: skip


def test_with_wildcards_all_lines_of_a_caption_count(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (8, 8))
    (tmp_path / "a.caption").write_bytes("\ufeff one \r\n\r\n two\n".encode())
    assert _scan(tmp_path, enable_wildcard=True)[0].caption == "one\ntwo"
    assert _scan(tmp_path)[0].caption == "one"


def test_bad_images_are_left_out_where_that_is_asked_for(tmp_path: Path, caplog) -> None:
    for name in ("a", "b"):
        save_image(tmp_path / f"{name}.png", (8, 8))
        (tmp_path / f"{name}.caption").write_text(name)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"hello")
    (tmp_path / "text.caption").write_bytes(b"caf\xe9")
    subset = SubsetConfig("s", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        records = scan_folder(subset, 0, skip_unreadable=True)
    assert [(record.key, record.caption) for record in records] == [("a.png", "a"), ("b.png", "b")]
    assert "skipping 2 unreadable images: empty.png, text.jpg" in caplog.text
    with pytest.raises(UserError) as caught:
        scan_folder(subset, 0)
    assert "empty.png is empty" in str(caught.value) and "text.caption is not UTF-8" in str(caught.value)
    # what is wrong with captions is still an error
    (tmp_path / "b.caption").write_bytes(b"\xff")
    with pytest.raises(UserError, match="b.caption is not UTF-8") as caught:
        scan_folder(subset, 0, skip_unreadable=True)
    assert "text.caption" not in str(caught.value)
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"x")
    with pytest.raises(UserError, match="none of 4 images .* can be read: a.png, b.png, empty.png, text.jpg"):
        scan_folder(subset, 0, skip_unreadable=True)


def test_cut_images_and_wrong_endings_are_seen_in_the_scan(tmp_path: Path) -> None:
    for name, kind in (("png.jpg", "PNG"), ("jpeg.webp", "JPEG"), ("webp.png", "WEBP"), ("gif.bmp", "GIF")):
        save_image(tmp_path / name, (200, 100), format=kind)
    assert {record.size for record in _scan(tmp_path, class_tokens="x")} == {(200, 100)}
    for name in ("png.jpg", "jpeg.webp", "webp.png"):
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size * 2 // 3)
    problem = _problem(tmp_path, class_tokens="x")
    assert [problem.count(name) for name in ("png.jpg", "jpeg.webp", "webp.png", "gif.bmp")] == [1, 1, 1, 0]


def test_wrong_folders_are_told_apart(tmp_path: Path) -> None:
    assert "does not exist" in _problem(tmp_path / "missing")
    save_image(tmp_path / "inner" / "a.png", (8, 8))
    assert "is a file" in _problem(tmp_path / "inner" / "a.png")
    (tmp_path / "bare").mkdir()
    assert "contains no images" in _problem(tmp_path / "bare")
    assert "its subfolder inner contains images" in _problem(tmp_path)


def test_concept_folders_are_those_of_the_reference(tmp_path: Path, caplog) -> None:
    names = [" 4_x", "-1_cat", "03_x", "0_cat", "10_cat", "10_日本", "1_", "1e2_x", "2__x", "3.5_x", "3_a_b_c", "5"]
    for name in [*names, "_3_x", "cat"]:
        (tmp_path / name).mkdir()
    (tmp_path / "7_file").write_text("")
    with caplog.at_level(logging.WARNING):
        found = find_concept_folders(str(tmp_path), "--train_data_dir")
    assert [(Path(each.path).name, each.num_repeats, each.class_tokens) for each in found] == [
        (" 4_x", 4, "x"),
        ("03_x", 3, "x"),
        ("10_cat", 10, "cat"),
        ("10_日本", 10, "日本"),
        ("1_", 1, ""),
        ("2__x", 2, "_x"),
        ("3_a_b_c", 3, "a_b_c"),
        ("5", 5, ""),
    ]
    assert "<repeats>_<class tokens>: -1_cat, 0_cat, 1e2_x, 3.5_x, _3_x, cat" in caplog.text


def _folder_problem(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_concept_folders(str(folder), "--train_data_dir")
    return str(caught.value)


def test_a_folder_one_level_off_is_recognised(tmp_path: Path) -> None:
    save_image(tmp_path / "project" / "img" / "10_dog" / "a.png", (8, 8))
    (tmp_path / "project" / "log").mkdir()
    assert f"did you mean --train_data_dir {tmp_path / 'project' / 'img'}?" in _folder_problem(tmp_path / "project")
    child = _folder_problem(tmp_path / "project" / "img" / "10_dog")
    assert f"give its parent folder, --train_data_dir {tmp_path / 'project' / 'img'}" in child
    save_image(tmp_path / "flat" / "a.png", (8, 8))
    assert "it contains images itself" in _folder_problem(tmp_path / "flat")
    (tmp_path / "other" / "dogs").mkdir(parents=True)
    assert "found dogs; expected folders such as 10_sks dog" in _folder_problem(tmp_path / "other")
    assert "does not exist" in _folder_problem(tmp_path / "nowhere")
    assert "is a file" in _folder_problem(tmp_path / "flat" / "a.png")


def test_a_folder_that_is_not_there_is_one_error_beside_regularisation_images(tmp_path, make_images) -> None:
    make_images("reg/1_dog", 1)
    folders = {"train_data_dir": str(tmp_path / "gone"), "reg_data_dir": str(tmp_path / "reg")}
    with pytest.raises(UserError) as caught:
        load_training_data(DatasetOptions(**folders, resolution=(64, 64)))
    assert caught.value.message == f"--train_data_dir {tmp_path / 'gone'} does not exist"


def test_folders_of_concepts_become_one_dataset(tmp_path: Path) -> None:
    for number in range(3):
        save_image(tmp_path / "train" / "2_sks dog" / f"{number}.png", (64, 64))
    save_image(tmp_path / "train" / "1_cat" / "0.png", (64, 64))
    save_image(tmp_path / "reg" / "1_dog" / "0.png", (64, 64))
    data = load_training_data(
        DatasetOptions(
            train_data_dir=str(tmp_path / "train"),
            reg_data_dir=str(tmp_path / "reg"),
            resolution=(64, 64),
            flip_aug=True,
        )
    )
    (dataset,) = data.datasets
    summaries = dataset.subset_summaries
    assert [(each.config.folder_name, each.img_count, each.config.num_repeats) for each in summaries] == [
        ("1_cat", 1, 1),
        ("2_sks dog", 3, 2),
        ("1_dog", 1, 1),
    ]
    assert [each.config.is_reg for each in summaries] == [False, False, True]
    assert (data.num_train_images, data.num_reg_images, data.num_items) == (7, 1, 14)
    assert summaries[1].tag_frequency == {"sks dog": 3}
    assert all(each.config.flip_aug for each in summaries)


def test_mistakes_in_the_file_and_in_the_folders_come_together(load_toml, make_images, tmp_path: Path) -> None:
    make_images("good", 1, caption="x")
    (tmp_path / "good" / "bad.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load_toml(
            """
            [[datasets]]
            resolution = 64
            batchsize = 2
            [[datasets.subsets]]
            image_dir = "{dir}/good"
            class_tokens = "x"
            [[datasets.subsets]]
            image_dir = "{dir}/missing"
            """
        )
    text = str(caught.value)
    assert "did you mean batch_size?" in text
    assert "bad.png is empty" in text
    assert "datasets[0].subsets[1]: image_dir" in text and "missing does not exist" in text


def test_data_that_cannot_be_trained_on_is_refused(load_toml, make_images, tmp_path: Path) -> None:
    make_images("reg", 1, caption="x")
    text = "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/reg'\n"
    with pytest.raises(UserError, match=r"datasets\[0\] has regularisation images only"):
        load_toml(text + "is_reg = true")
    with pytest.raises(UserError, match="has 60000000 items per epoch"):
        load_toml(text + "num_repeats = 60000000")
    save_image(tmp_path / "reg" / "thin.png", (65000, 1))
    with pytest.raises(UserError, match=r"thin.png has too extreme an aspect ratio: 65000x1"):
        load_toml(text + "class_tokens = 'x'")


SUBSETS = """
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = '{dir}/bare'
[[datasets.subsets]]
image_dir = '{dir}/outer'
class_tokens = 'x'
"""
FULL = "[[datasets.subsets]]\nimage_dir = '{dir}/full'\nnum_repeats = 3\nvalidation_split = 0.5\n"
REGULARISATION = "[[datasets.subsets]]\nimage_dir = '{dir}/reg'\nis_reg = true\n"


def _make_bare_folders(tmp_path: Path, make_images) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "note.md").write_text("")
    make_images("outer/inner", 1)
    make_images("full", 2, caption="x")
    make_images("reg", 1, caption="y")


@pytest.mark.parametrize("text", [SUBSETS + FULL, SUBSETS + "[[datasets]]\nresolution = 64\n" + FULL])
def test_folders_without_images_are_left_out_beside_others(tmp_path, make_images, load_toml, caplog, text) -> None:
    """Images of a later folder keep the settings of their own, of 2 images one is held out, the other used 3 times."""
    _make_bare_folders(tmp_path, make_images)
    with caplog.at_level(logging.WARNING):
        data = load_toml(text)
    (dataset,) = data.datasets
    assert [subset.folder_name for subset in dataset.config.subsets] == ["full"]
    assert (data.num_items, data.validation.num_items) == (3, 1)
    assert caplog.messages == [
        f"datasets[0].subsets[0]: folder {tmp_path}/bare contains no images (1 other file), and is skipped: "
        "put images (.png .jpg .jpeg .webp .bmp .avif .jxl) directly in it",
        f"datasets[0].subsets[1]: folder {tmp_path}/outer contains no images (0 other files), and is skipped: "
        "its subfolder inner contains images: give that one, one subset for each folder",
    ]


def test_without_any_image_all_folders_are_named(tmp_path: Path, make_images, load_toml) -> None:
    _make_bare_folders(tmp_path, make_images)
    with pytest.raises(UserError) as caught:
        load_toml(SUBSETS)
    assert "bare contains no images (1 other file)" in str(caught.value)
    assert "its subfolder inner contains images: give that one" in str(caught.value)


def test_regularisation_images_are_not_trained_alone(tmp_path: Path, make_images, load_toml) -> None:
    _make_bare_folders(tmp_path, make_images)
    with pytest.raises(UserError, match=r"^datasets\[0\] has regularisation images only"):
        load_toml(SUBSETS + REGULARISATION)


def test_a_folder_that_is_not_there_stays_an_error_beside_others(tmp_path, make_images, load_toml) -> None:
    _make_bare_folders(tmp_path, make_images)
    with pytest.raises(UserError, match=r"^datasets\[0\]\.subsets\[1\]: image_dir .*gone does not exist"):
        load_toml(SUBSETS.replace("outer", "gone") + FULL)


def test_concept_folders_without_images_are_left_out_beside_others(tmp_path, make_images, caplog) -> None:
    make_images("train/1_cat/inner", 1)
    make_images("train/2_dog", 3)
    (tmp_path / "reg" / "1_animal").mkdir(parents=True)
    folders = {"train_data_dir": str(tmp_path / "train"), "reg_data_dir": str(tmp_path / "reg")}
    with caplog.at_level(logging.WARNING):
        data = load_training_data(DatasetOptions(**folders, resolution=(64, 64)))
    assert [subset.folder_name for subset in data.datasets[0].config.subsets] == ["2_dog"]
    assert data.num_items == 6
    assert ["1_cat" in caplog.messages[0], "1_animal" in caplog.messages[1]] == [True, True]
    assert "its subfolder inner contains images: move them up into it" in caplog.messages[0]


def test_folders_beside_a_dataset_config_are_ignored_with_a_warning(load_toml, make_images, caplog) -> None:
    make_images("a", 1, caption="x")
    with caplog.at_level(logging.WARNING):
        data = load_toml(
            "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{dir}/a'\nalpha_mask = true",
            train_data_dir="elsewhere", conditioning_data_dir="masks",
        )  # fmt: skip
    assert [record.mask_path for record in data.datasets[0].records] == [None]
    assert "--train_data_dir is ignored" in caplog.text and "--conditioning_data_dir is ignored" in caplog.text


def test_a_link_that_leads_to_itself_is_named_and_the_other_images_are_found(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (8, 8))
    (tmp_path / "loop").symlink_to("loop")
    assert [record.key for record in scan_folder(SubsetConfig("s", str(tmp_path)), 0)] == ["a.png"]
    (tmp_path / "b.png").symlink_to("b.png")
    with pytest.raises(UserError, match=r"image .*b\.png cannot be read: Too many levels of symbolic links"):
        scan_folder(SubsetConfig("s", str(tmp_path)), 0)


def test_captions_of_another_extension_beside_class_tokens_are_counted_and_the_flag_is_named(tmp_path, caplog) -> None:
    for name in "abc":
        save_image(tmp_path / f"{name}.png", (8, 8))
    subset = SubsetConfig("--train_data_dir", str(tmp_path), class_tokens="sks dog")
    with caplog.at_level(logging.INFO):
        scan_folder(subset, 0)
    assert [record.levelname for record in caplog.records] == ["INFO"]  # as DreamBooth is meant to be used
    caplog.clear()
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("a dog")
    scan_folder(subset, 0)
    (message,) = caplog.messages
    assert "3 of 3 images" in message and "2 have a .txt file, which is not read: set --caption_extension" in message


@pytest.mark.parametrize("content", ["a cat\nand a dog\n", "a cat\r\n\r\nand a dog", "a cat\rand a dog"])
def test_a_second_line_of_a_caption_is_not_left_out_in_silence(tmp_path: Path, caplog, content: str) -> None:
    for name, text in (("a", content), ("b", "a cat\n\n")):
        save_image(tmp_path / f"{name}.png", (8, 8))
        (tmp_path / f"{name}.caption").write_bytes(text.encode())
        os.utime(tmp_path / f"{name}.caption", (0, 0))
        os.utime(tmp_path / f"{name}.png", (0, 0))
    for _ in range(2):  # the second time from the index
        caplog.clear()
        records = scan_folder(SubsetConfig("s", str(tmp_path), cache_info=True), 0)
        assert [record.caption for record in records] == ["a cat", "a cat"]
        (message,) = caplog.messages
        assert "only the first line of 1 caption file is used: a.caption" in message
    caplog.clear()
    scan_folder(SubsetConfig("s", str(tmp_path), enable_wildcard=True), 0)
    assert not caplog.messages
