"""If these fail, a user picks a run by options, curves or images of another one."""

import pytest

from library.cli.errors import UserError
from library.run_report.record import read_page
from library.tools.compare_runs import compare
from tests.browser import browse, needs_browser
from tests.dataset_report.page_reader import read_page as read_html
from tests.run_report.pages import HOSTILE, make_record, write_page


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    other = make_record("cat", 80, seed=9)
    other.options = {"learning_rate": 3e-4, "network_dim": 8, "full_bf16": True}
    write_page(root / "a", make_record("fox"))
    write_page(root / "b", other, prompts=("a fox", "a cat"))
    return root


@pytest.fixture(scope="module")
def page(folders):
    output = folders / "comparison.html"
    compare([str(folders / "a"), str(folders / "b" / "cat-run.html"), "--output", str(output)])
    return output


def rows_of(section):
    return [[cell.text for cell in row.all("td")] for row in section.all("tr")[1:]]


def test_options_that_differ_are_listed_and_no_others(page):
    assert rows_of(read_html(page).by_id("options")) == [
        ["--full_bf16", "default", "on"],
        ["--learning_rate", "0.0001", "0.0003"],
        ["--network_args", "conv_dim=4", "default"],
    ]


def test_runs_are_lines_of_one_chart_by_the_same_steps(page):
    read = read_html(page)
    smoothed, validation = read.all("figure", "chart")
    assert [key.text for key in smoothed.all("span", "key")] == ["fox", "cat"]
    fox, cat = (path.attributes["d"] for path in smoothed.all("path"))
    assert fox.split("L")[-1].startswith("500.0 ") and cat.split("L")[-1].startswith("1000.0 ")  # 40 and 80 steps
    assert len(validation.all("path")) == 2
    assert [row[2:] for row in rows_of(read.by_id("runs"))] == [
        ["40 of 40", "0.1", "0.15 at step 20", "1"],
        ["80 of 80", "0.1", "0.15 at step 40", "1"],
    ]


def test_images_of_a_prompt_stand_in_the_columns_of_their_runs(page, folders):
    read = read_html(page)
    samples = read.by_id("samples")
    assert [title.all(of_class="text")[0].text for title in samples.all("h3")] == ["a fox", HOSTILE, "a cat"]
    fox, cat = (read_page(folders / name).images for name in ("a/fox-run.html", "b/cat-run.html"))

    def shown(table):
        cells = [row.all("td")[1:] for row in table.all("tr")[1:]]
        return [[image.all("img")[0].attributes["src"] if image.all("img") else None for image in row] for row in cells]

    first, _, last = samples.all("table")
    assert shown(first) == [[fox[0, 0], cat[0, 0]], [fox[0, 20], None], [fox[0, 40], cat[0, 40]], [None, cat[0, 80]]]
    assert shown(last) == [[None, cat[1, step]] for step in (0, 40, 80)]  # a prompt of the second run alone
    assert not read.all("script")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "no runs to compare"),
        (["a"], "1 run to compare"),
        (["a", "gone"], "gone cannot be read"),
        (["a", "."], "has no page of a run"),
        (["a", "b", "--output", "a/fox-run.html"], "is one of the pages to compare"),
    ],
)
def test_mistakes_are_named(words, problem, folders, monkeypatch):
    monkeypatch.chdir(folders)
    before = (folders / "a" / "fox-run.html").read_bytes()
    with pytest.raises(UserError, match=problem):
        compare(words)
    assert (folders / "a" / "fox-run.html").read_bytes() == before


@needs_browser
def test_a_browser_shows_the_comparison_without_a_word(page, tmp_path):
    dom, said = browse(page, tmp_path / "profile")
    assert said == "" and "<title>Comparison of runs</title>" in dom
