"""If this fails, a part of a page stands without its layout."""

import re

import pytest

from tests.programs import ROOT

ROOMS = ("dataset_report", "run_report")


ATTRIBUTE = re.compile(r'class="((?:\{\{.*?\}\}|\{%.*?%\}|[^"{])*)"')


def classes_in(*rooms):
    """Those that templates write, those of their expressions too."""
    texts = [path.read_text("utf-8") for room in rooms for path in (ROOT / "library" / room).glob("*.jinja")]
    return {name for text in texts for part in ATTRIBUTE.findall(text) for name in re.findall(r"[\w-]+", part)}


def classes_of(style):
    return set(re.findall(r"\.([a-z][\w-]*)", re.sub(r"\{[^{}]*\}", "", style.read_text("utf-8"))))


# the names of curves, marks and endings come as values
VALUES = {*(f"hue{number}" for number in range(8)), "raw", "smooth", "validation", "epoch", "save", "skipped"}
VALUES |= {"good", "bad", "warn", "plain"}


@pytest.mark.parametrize("room", ROOMS)
def test_each_class_that_the_style_sheet_of_a_page_names_is_on_it(room):
    (style,) = (ROOT / "library" / room).glob("*.css")
    named = classes_of(style) - (VALUES if room == "run_report" else set())
    assert len(named) > 15 and named - classes_in(room, "html_pages") == set()


def test_each_class_that_the_shared_style_sheet_names_is_on_a_page():
    named = classes_of(ROOT / "library" / "html_pages" / "base.css")
    assert len(named) > 10 and named - classes_in("html_pages", *ROOMS) == set()
