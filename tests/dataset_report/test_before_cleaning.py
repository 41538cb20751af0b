"""If this fails, a user who looks at cleaned metadata is not shown what cleaning has taken away."""

import json

import pytest

from library.cli.errors import UserError
from library.data.config.options import DatasetOptions
from library.data.load_data import load_training_data
from library.data.records import StepCounter
from library.dataset_report.before_cleaning import compare
from library.dataset_report.caption_length import TokenLimit
from library.dataset_report.options import ReportOptions
from library.dataset_report.page import Report, write_page
from library.dataset_report.sampled_items import DrawSettings
from tests.data.image_files import save_image
from tests.dataset_report.page_reader import cards, read_page

BEFORE = {
    "a": {"caption": "an anime lady sits", "tags": "1girl, long_hair, shirt, white_shirt, solo, solo"},
    "b": {"caption": "a <b>dog</b>", "tags": "dog_tail"},
    "c": {"tags": "x, solo"},
    "elsewhere": {"tags": "y"},
}
AFTER = {
    "a": {"caption": "a girl sits", "tags": "1girl, long hair, white shirt, solo"},
    "b": {"caption": "a <b>dog</b>", "tags": "dog tail"},
    "c.png": {"caption": "new", "tags": "x, fresh"},
}


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Compares the metadata of three images with a file of earlier entries; gives the data and what has changed."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        save_image(tmp_path / "images" / f"{name}.png", (64, 64), number)

    def look(before):
        (tmp_path / "after.json").write_text(json.dumps(AFTER))
        (tmp_path / "before.json").write_text(before if isinstance(before, str) else json.dumps(before))
        options = DatasetOptions(train_data_dir="images", in_json="after.json", resolution=(64, 64))
        data = load_training_data(options)
        return data, compare(data, "before.json")

    return look


def test_tags_and_words_that_went_are_struck_through_and_new_ones_marked(look, tmp_path):
    """A tag whose underscores became blanks is still there; of a tag that was there twice, one went."""
    data, cleaning = look(BEFORE)
    report = Report(data, DrawSettings(1, True, StepCounter(1, 3, 3)), TokenLimit(len, 75), cleaning=cleaning)
    write_page(report, tmp_path / "page.html", advance=lambda count: None)
    page = read_page(tmp_path / "page.html")
    shown = {name: [line for line in card.all("p", "change")] for name, card in cards(page).items()}
    assert [line.text for line in shown["b.png"]] == []
    caption, tags = shown["a.png"]
    assert [each.text for each in caption.all("del")] == ["an anime lady"]
    assert [each.text for each in caption.all("ins")] == ["a girl"]
    assert [each.text for each in tags.all("del")] == ["shirt", "solo"]
    assert tags.text == "tags before: 1girl, long hair, shirt, white_shirt, solo, solo".replace("white_", "white ")
    assert [[each.text for each in line.all("del") + line.all("ins")] for line in shown["c.png"]] == [
        ["new"],
        ["solo", "fresh"],
    ]
    summary = page.by_id("images").all("p", "change")[0].text
    assert "Against before.json, the captions or tags of 2 images have changed." in summary
    assert "solo (2), shirt (1)." in summary


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({"elsewhere": {}}, "--debug_dataset_before before.json describes none of the images"),
        ("[1]", "--debug_dataset_before before.json is not a table"),
        ('{"a": {"tags": 5}}', '--debug_dataset_before before.json: "a".tags = 5 is not valid'),
    ],
    ids=["other images", "no table", "no text"],
)
def test_a_file_that_cannot_be_compared_is_named(look, before, said):
    with pytest.raises(UserError) as caught:
        look(before)
    assert caught.value.message == said and caught.value.hint


def test_folders_of_images_have_nothing_to_compare(tmp_path):
    save_image(tmp_path / "data" / "1_x" / "a.png", (64, 64))
    data = load_training_data(DatasetOptions(train_data_dir=str(tmp_path / "data"), resolution=(64, 64)))
    with pytest.raises(UserError, match="no subset has a metadata file"):
        compare(data, "before.json")


def test_options_of_a_page_that_is_not_asked_for_are_said():
    options = ReportOptions(debug_dataset_dir="page", debug_dataset_before="before.json")
    said = ["--debug_dataset_dir does nothing without", "--debug_dataset_before does nothing without"]
    assert [text.rpartition(" ")[0] for text in options.check()] == said
    assert list(ReportOptions(debug_dataset=True, debug_dataset_dir="page").check()) == []
