"""If these fail, an error message is empty, or is a page of a library's output where one line would do."""

import pytest

from library.cli.errors import UserError, UserErrors, first_line, listed, plural


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no such key\n  at line 3"), "no such key"),
        (RuntimeError("\n\nfile is truncated"), "file is truncated"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_first_line_of_an_error_names_what_is_wrong(error, expected):
    assert first_line(error) == expected


def test_a_long_list_of_names_is_cut_and_says_how_many_are_left_out():
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"


def test_a_mistake_made_many_times_is_not_told_many_times():
    errors = UserErrors([UserError(f"image {n} is too thin") for n in range(200_000)])
    lines = str(errors).splitlines()
    assert len(lines) == 101 and lines[0] == "image 0 is too thin" and lines[-1] == "199900 more errors"
    assert len(errors.errors) == 200_000


def test_a_count_has_the_noun_that_belongs_to_it():
    assert [plural(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [plural(count, "batch", "batches") for count in (1, 2)] == ["1 batch", "2 batches"]
