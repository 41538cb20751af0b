"""If these fail, files that front ends and notebooks write are refused, or are read as something else than they say."""

import dataclasses
from typing import ClassVar

import pytest

from library.cli.options import FREE_TEXT, convert, option, option_fields
from library.cli.options_page import options_page


@dataclasses.dataclass(frozen=True)
class Everything:
    GROUP: ClassVar[str] = "Everything"

    switch: bool = option(False, help="h")
    count: int = option(3, help="h", minimum=1, off=(0,))
    strict: int = option(3, help="h", minimum=1)
    every: int | None = option(help="h", minimum=1)
    gamma: float | None = option(help="h", above=0)
    offset: float | None = option(help="h", minimum=0)
    seed: int | None = option(help="h", minimum=0)
    name: str | None = option(help="h", metavar="NAME")
    comment: str | None = option(help="h", metavar=FREE_TEXT)
    folder: str | None = option(help="h", metavar="FOLDER")
    kind: str = option("a", help="h", choices=("a", "b"))
    device: str | None = option(help="h", choices=("none", "cpu"))
    names: tuple[str, ...] = option((), help="h")
    rate: float | None = option(help="h", minimum=0, takes_first=True)


FIELDS = {field.name: field for field in option_fields(Everything)}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("switch", ""),
        ("count", 0), ("count", "0"), ("count", 0.0), ("count", ""), ("count", False),
        ("every", 0), ("every", "0"), ("every", False), ("every", "none"), ("every", "None"), ("every", ""),
        ("gamma", 0), ("gamma", 0.0), ("gamma", "0.0"), ("gamma", False),
        ("offset", False), ("offset", ""), ("offset", "none"), ("seed", False), ("seed", "null"),
        ("name", ""), ("name", False), ("name", "none"), ("comment", ""), ("comment", False),
        ("folder", ""), ("folder", False), ("folder", 0), ("folder", "None"),
        ("kind", ""), ("device", False), ("device", ""),
        ("names", ""), ("names", []), ("names", [""]), ("names", False), ("rate", []), ("rate", ""),
    ],
)  # fmt: skip
def test_values_that_mean_off_are_as_if_not_given(name, given):
    assert FIELDS[name].is_off(given)
    assert convert(FIELDS[name], given) == FIELDS[name].default


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("switch", 1, True), ("switch", 0, False), ("switch", 1.0, True), ("switch", "true", True),
        ("switch", "False", False), ("switch", "0", False),
        ("count", 8.0, 8), ("count", "8", 8), ("count", "8.0", 8),
        ("every", 2.0, 2), ("gamma", "5", 5.0), ("gamma", 5, 5.0), ("offset", "1e-4", 1e-4),
        ("offset", 0, 0.0), ("seed", 0, 0), ("seed", "0", 0),  # these have a meaning of their own
        ("name", 123, "123"), ("name", 1.5, "1.5"), ("comment", "none", "none"), ("folder", "0", "0"),
        ("device", "none", "none"), ("names", "a", ("a",)), ("names", ["a", "", 1], ("a", "1")),
        ("rate", [0.1, 0.2], 0.1), ("rate", ["0.1"], 0.1), ("rate", 0.3, 0.3), ("rate", [0, 1], 0.0),
    ],
)  # fmt: skip
def test_types_that_programs_write_are_read_where_there_is_no_doubt(name, given, value):
    converted = convert(FIELDS[name], given)
    assert converted == value and type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("switch", 2, "true or false"), ("switch", "maybe", "true or false"), ("switch", [True], "true or false"),
        ("count", 1.5, "a whole number"), ("count", "1.5", "a whole number"), ("count", True, "a whole number"),
        ("count", "many", "a whole number"), ("count", float("inf"), "a whole number"),
        ("count", [1], "a whole number"),
        ("strict", 0, "1 or more"), ("strict", False, "a whole number"),
        ("gamma", True, "a number"), ("gamma", "x", "a number"), ("gamma", float("nan"), "finite"),
        ("gamma", 10**400, "a number"), ("offset", -1, "0 or more"),
        ("name", True, "a text"), ("name", ["a"], "a text"), ("name", {"a": 1}, "a text"),
        ("kind", "none", "one of a, b"), ("kind", False, "a text"), ("device", "gpu", "one of none, cpu"),
    ],
)  # fmt: skip
def test_values_without_a_sensible_reading_stay_errors(name, given, expected):
    assert not FIELDS[name].is_off(given)
    with pytest.raises(ValueError, match=expected):
        convert(FIELDS[name], given)


def test_the_page_of_options_names_the_off_values():
    page = options_page("x.py", [Everything])
    assert "| `--every` | whole number; 0: off |" in page
    assert "| `--count` | whole number; 0: off | `3` |" in page
    assert "| `--name` | text |" in page
    assert "| `--strict` | whole number | `3` |" in page
