"""If these fail, the page of a run does not say what happened, or needs more than itself."""

import re

import pytest

from library.cli.documents import parse_toml
from library.cli.errors import UserError
from library.run_report.record import Ending, Save, SavedFile, read_page
from tests.browser import browse, needs_browser
from tests.dataset_report.page_reader import read_page as read_html
from tests.run_report.pages import HOSTILE, make_record, write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page"), make_record("fox"))


def test_a_page_says_what_happened(page):
    read = read_html(page)
    text = read.by_id("warnings").text
    assert "1 Steps that were not applied" in text and HOSTILE in text
    assert read.all("h1")[0].text == "fox finished"
    tiles = {tile.all("span")[0].text: tile.all("b")[0].text for tile in read.all(of_class="tiles")[0].all("div")}
    assert tiles["steps"] == "40 of 40" and tiles["time"] == "11 min 0 s"  # 60 s before it was resumed
    assert tiles["lowest validation loss, at step 20"] == "0.15" and tiles["peak memory"] == "1.25 GiB"
    rows = [[cell.text for cell in row.all("td")] for row in read.by_id("files").all("tr")[1:]]
    assert rows == [["fox-000001.safetensors", "1.5 MB", "ab" * 32], ["fox.safetensors", "1.5 MB", "not hashed"]]
    options = parse_toml(read.by_id("training").all("pre")[1].text, "page", "options")
    assert options == make_record("fox").options


def test_a_validation_loss_that_rises_names_the_checkpoint_before(page):
    (reading,) = [each for each in read_html(page).all("li", "bad") if "validation" in each.text]
    assert "risen since step 20, from 0.15 to 0.25" in reading.text and "fox-000001.safetensors" in reading.text


def test_curves_are_drawn_with_epochs_saves_and_skipped_steps_marked(page):
    loss, rates = read_html(page).all("figure", "chart")
    assert [path.attributes["class"] for path in loss.all("path")] == ["raw", "smooth", "validation"]
    assert len(loss.all("i", "dot")) == 5 and len(rates.all("path")) == 1
    titles = {mark.attributes["title"] for mark in loss.all("i", "at")}
    assert {"end of epoch 1, step 20", "fox-000001.safetensors, step 20", "fox.safetensors, step 40"} < titles
    (skipped,) = loss.all("i", "skipped")[-1:]
    assert skipped.attributes["style"] == "left:7.500%"  # step 3 of 40


def test_samples_have_a_row_for_each_prompt_and_a_column_for_each_round(page):
    samples = read_html(page).by_id("samples")
    assert [cell.text for cell in samples.all("th")] == ["prompt", "step 0", "step 20", "step 40"]
    assert [row.all(of_class="text")[0].text for row in samples.all("tr")[1:]] == ["a fox", HOSTILE]
    assert [image.attributes["id"] for image in samples.all("img")] == [
        f"sample-{row}-{step}" for row in (0, 1) for step in (0, 20, 40)
    ]


def test_a_page_needs_nothing_but_itself_and_nothing_in_it_can_run(page):
    read = read_html(page)
    assert [script.attributes["type"] for script in read.all("script")] == ["application/json"]
    sources = [
        element.attributes[name] for element in read.all() for name in ("src", "href") if name in element.attributes
    ]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not [name for element in read.all() for name in element.attributes if name.startswith("on")]
    assert "url(" not in read.all("style")[0].text and "@import" not in read.all("style")[0].text
    links = {link.attributes["href"][1:] for link in read.all("nav")[0].all("a")}
    assert links == {section.attributes["id"] for section in read.all("section") if "id" in section.attributes}


def test_the_record_is_read_back_as_it_was(page):
    read = read_page(page)
    assert read.record == make_record("fox", samples=read.record.samples, rounds=read.record.rounds)
    assert set(read.images) == {(row, step) for row in (0, 1) for step in (0, 20, 40)}


def test_a_long_run_has_a_small_page(tmp_path):
    steps = 100_000
    record = make_record("long", steps, epoch_ends=list(range(100, steps + 1, 100)))
    record.saves = [Save(step, f"long-{step}.safetensors") for step in record.epoch_ends]
    record.files = [SavedFile(save.name, 1, "ab" * 32, 1) for save in record.saves]
    assert write_page(tmp_path, record).stat().st_size < 1_500_000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfe", "not UTF-8 text"),
        (b"<html></html>", "it has no record"),
        (b'<script type="application/json" id="record">{"format": 9}</script>', "format 9, not 1"),
        (b'<script type="application/json" id="record">[]</script>', "its record is damaged"),
        (b'<script type="application/json" id="record">{"format": 1, "ending": 3}</script>', "its record is damaged"),
    ],
)
def test_what_is_no_page_is_named(content, problem, tmp_path):
    (tmp_path / "x.html").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(problem)):
        read_page(tmp_path / "x.html")


def test_a_run_that_failed_before_its_first_step_has_a_page(tmp_path):
    record = make_record("early", step=0, curves={}, epoch_ends=[], saves=[], files=[], phases=[], sessions=[])
    record.ending = Ending("out of memory", "the GPU has not enough memory", "give --cache_latents")
    read = read_html(write_page(tmp_path, record, prompts=()))
    assert "the GPU has not enough memory" in read.all(of_class="ending")[0].text
    assert "No step was logged" in read.by_id("curves").text and "No file was saved" in read.by_id("files").text


@needs_browser
def test_a_browser_shows_the_page_without_a_word(page, tmp_path):
    dom, said = browse(page, tmp_path / "profile")
    assert said == ""
    (tmp_path / "dom.html").write_text(dom, encoding="utf-8")
    read = read_html(tmp_path / "dom.html")
    assert read.all("title")[0].text == "fox: finished"
    assert len(read.all("img")) == 6 and len(read.all("svg")) == 2
