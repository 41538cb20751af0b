"""The page that lays several runs side by side: options that differ, curves in one chart, sample images in columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.cli.errors import UserError, listed
from library.html_pages.templates import page_style
from library.run_report.charts import Chart, Line, make_chart
from library.run_report.page import report_environment
from library.run_report.readings import SMOOTHED, VALIDATION, last, lowest
from library.run_report.record import PAGE_ENDING, ReadPage, RunRecord, SampleRow
from library.run_report.thumbnails import spread

MOST_STEPS = 8  # of sample images, for each prompt
_HERE = Path(__file__).parent
# options that say nothing of what a run learned
_OWN = ("output_dir", "output_name", "logging_dir", "log_prefix", "resume", "overwrite")


@dataclass(frozen=True)
class ComparedRun:
    """A run under a name of its own on the page."""

    name: str
    look: str  # its colour
    page: ReadPage

    @property
    def record(self) -> RunRecord:
        return self.page.record


@dataclass(frozen=True)
class PromptImages:
    """The images of a prompt: a row for each step, in it one for each run, None where there is none."""

    row: SampleRow
    steps: list[tuple[int, list[str | None]]]


def find_page(given: str) -> Path:
    """The page that is given, or the only one in the folder that is. Raises `UserError`."""
    path = Path(given)
    if not path.is_dir():
        return path
    pages = sorted(path.glob(f"*{PAGE_ENDING}"))
    if len(pages) == 1:
        return pages[0]
    if not pages:
        raise UserError(f"{given} has no page of a run", hint=f"give a folder with a file <name>{PAGE_ENDING}")
    names = listed([str(page) for page in pages], 3)
    raise UserError(f"{given} has the pages of {len(pages)} runs", hint=f"name those to compare: {names}")


def compared(pages: Sequence[ReadPage]) -> list[ComparedRun]:
    """The runs in the order given; those of equal names get that of their folder, too."""
    counts = Counter(page.record.name for page in pages)
    runs: list[ComparedRun] = []
    for index, page in enumerate(pages):
        name = page.record.name
        if counts[name] > 1:
            name = f"{page.path.absolute().parent.name}/{name}"
        if any(run.name == name for run in runs):
            name = f"{name} ({index + 1})"
        runs.append(ComparedRun(name, f"hue{index % 8}", page))
    return runs


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """The page as a text."""
    return (
        report_environment()
        .get_template("compare.html.jinja")
        .render(
            style=page_style(_HERE / "report.css"),
            runs=runs,
            results=list(_results(runs)),
            options=list(different_options(runs)),
            charts=_charts(runs),
            prompts=list(prompts_of(runs)),
        )
    )


def _results(runs: Sequence[ComparedRun]) -> Iterator[list[str]]:
    """For each run: steps, last smoothed loss, lowest validation loss and where, steps not applied."""
    for run in runs:
        record = run.record
        end, best = last(record.curves.get(SMOOTHED, [])), lowest(record.curves.get(VALIDATION, []))
        yield [
            f"{record.step:,} of {record.num_steps:,}",
            "" if end is None else f"{end:.4g}",
            "" if best is None else f"{best[1]:.4g} at step {best[0]:,}",
            f"{record.num_skipped:,}",
        ]


def different_options(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, list[str]]]:
    """Each option that is not the same in all runs, with its value in each."""
    programs = [run.record.program for run in runs]
    if len(set(programs)) > 1:
        yield "script", programs
    names = sorted({name for run in runs for name in run.record.options if name not in _OWN})
    for name in names:
        values = [run.record.options.get(name) for run in runs]
        if any(value != values[0] for value in values):
            yield f"--{name}", [_shown(value) for value in values]


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _charts(runs: Sequence[ComparedRun]) -> list[Chart]:
    last_step = max(run.record.step for run in runs)
    charts = []
    for title, curve in (("Smoothed loss", SMOOTHED), ("Validation loss", VALIDATION)):
        lines = [
            Line(run.name, run.look, run.record.curves.get(curve, []), is_dotted=curve == VALIDATION) for run in runs
        ]
        charts.append(make_chart(title, lines, last_step))
    return [chart for chart in charts if chart is not None]


def prompts_of(runs: Sequence[ComparedRun]) -> Iterator[PromptImages]:
    """Each prompt of any run; prompts are the same where text and settings are. Steps are spread evenly."""
    rows = dict.fromkeys(row for run in runs for row in run.record.samples)
    for row in rows:
        found: list[dict[int, str]] = []
        for run in runs:
            index = run.record.samples.index(row) if row in run.record.samples else None
            found.append({step: uri for (number, step), uri in run.page.images.items() if number == index})
        steps = sorted({step for images in found for step in images})
        shown = [steps[index] for index in spread(len(steps), MOST_STEPS)]
        if shown:
            yield PromptImages(row, [(step, [images.get(step) for images in found]) for step in shown])
