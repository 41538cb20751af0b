"""The HTML page of a run, from its record and its sample images: one file, readable offline and without JavaScript."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.cli.documents import toml_text
from library.cli.logging import duration
from library.html_pages.templates import page_environment, page_style
from library.run_report.charts import Chart, Line, make_chart, rate_lines
from library.run_report.curves import thinned
from library.run_report.readings import LOSS, SMOOTHED, VALIDATION, last, lowest, readings
from library.run_report.record import RunRecord, record_element
from library.run_report.thumbnails import ShownGrid

if TYPE_CHECKING:
    from jinja2 import Environment

POINTS_KEPT = 1000  # of each curve, in the record
_HERE = Path(__file__).parent
_LOOK = {"finished": "good", "running": "plain", "stopped": "warn"}  # of endings; others are errors


def run_page(record: RunRecord, grid: ShownGrid, environment: Environment) -> str:
    """The page as a text. `record` has the rows and rounds of `grid` as its samples; its curves are thinned out."""
    record.curves = {name: thinned(points, POINTS_KEPT) for name, points in record.curves.items()}
    return environment.get_template("run.html.jinja").render(
        style=page_style(_HERE / "report.css"),
        record=record,
        record_element=record_element(record),
        tiles=list(_tiles(record)),
        readings=readings(record),
        charts=charts_of(record),
        grid=grid,
        options=toml_text(_toml_values(record.options)),
        num_bytes=sum(file.size for file in record.files),
    )


def report_environment() -> Environment:
    environment = page_environment(_HERE)
    environment.filters |= {
        "percent": "{:.3%}".format,
        "thousands": "{:,}".format,
        "bytes": bytes_text,
        "duration": duration,
        "moment": moment_text,
        "look": lambda kind: _LOOK.get(kind, "bad"),
    }
    return environment


def charts_of(record: RunRecord) -> list[Chart]:
    """Loss and learning rates by step."""
    curves, marks = record.curves, list(_marks(record))
    lines = [
        Line("loss of a step", "raw", curves.get(LOSS, [])),
        Line(SMOOTHED, "smooth", curves.get(SMOOTHED, [])),
        Line(VALIDATION, "validation", curves.get(VALIDATION, []), is_dotted=True),
    ]
    last_step = max(record.step, 1)
    charts = [
        make_chart("Loss", lines, last_step, marks, robust=True),
        make_chart("Learning rate", rate_lines(curves), last_step, marks),
    ]
    return [chart for chart in charts if chart is not None]


def _marks(record: RunRecord) -> Iterator[tuple[str, int, str]]:
    for number, step in enumerate(record.epoch_ends, start=1):
        yield "epoch", step, f"end of epoch {number}, step {step:,}"
    for save in record.saves:
        if not save.name.endswith("-state"):
            yield "save", save.step, f"{save.name}, step {save.step:,}"
    for step, text in record.skipped:
        yield "skipped", step, text


def _tiles(record: RunRecord) -> Iterator[tuple[str, str]]:
    curves = record.curves
    yield f"{record.step:,} of {record.num_steps:,}", "steps"
    if record.epoch_ends:
        yield f"{len(record.epoch_ends):,}", "epochs"
    end, best, validated = last(curves.get(SMOOTHED, [])), lowest(curves.get(VALIDATION, [])), None
    if end is not None:
        yield f"{end:.4g}", "smoothed loss, at the end" if record.ending.kind != "running" else "smoothed loss, now"
    if best is not None:
        validated = last(curves[VALIDATION])
        yield f"{best[1]:.4g}", f"lowest validation loss, at step {best[0]:,}"
        yield f"{validated:.4g}", "last validation loss"
    yield duration(record.seconds), "time"
    if record.phases:
        yield f"{max(phase.peak_gib for phase in record.phases):.2f} GiB", "peak memory"


def _toml_values(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def bytes_text(size: int) -> str:
    """ "512 B", "1.5 MB": decimal units, as file managers have them."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"


def moment_text(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
