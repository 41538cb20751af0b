"""If these fail, images of a folder are not worked on, or twice, or a folder without any passes for done."""

import os

import pytest

from library.cli.errors import UserError
from library.data.images.image_files import NoImages
from library.data.scan.image_search import find_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "a.txt", "._b.png", "sub/c.webp", "sub/deep/d.bmp", ".trash/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder, **how):
    return [os.path.relpath(path, folder).replace(os.sep, "/") for path in find_images(str(folder), **how)]


def test_images_are_found_by_name_and_in_order(folder):
    assert names(folder) == ["a.JPG", "b.png"]
    assert names(folder, recursive=True) == ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.bmp"]


def test_a_link_to_a_folder_is_followed_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "f.png").touch()
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert names(folder, recursive=True) == ["a.JPG", "b.png", "linked/f.png", "sub/c.webp", "sub/deep/d.bmp"]


def test_a_folder_that_is_none_or_has_no_images_is_an_error_that_says_what_to_do(folder):
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_images(str(folder / "nowhere"))
    with pytest.raises(UserError, match="is a file"):
        find_images(str(folder / "a.txt"))
    (folder / "outer" / "inner").mkdir(parents=True)
    (folder / "outer" / "inner" / "g.png").touch()
    with pytest.raises(NoImages, match="contains no images\n  its subfolders do: add --recursive"):
        find_images(str(folder / "outer"))
