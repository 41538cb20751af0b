"""Lays the pages of several runs side by side in one HTML file: python -m library.tools.compare_runs A B ..."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from library.cli.entry import run_entry
from library.cli.errors import UserError, raise_together
from library.cli.options import option
from library.cli.parser import parse_options
from library.run_report.comparison import compared, comparison_page, find_page
from library.run_report.record import ReadPage, read_page, write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompareOptions:
    """What to compare."""

    GROUP: ClassVar[str] = "Comparison"

    runs: tuple[str, ...] = option(
        (), help="pages <name>-run.html, or folders that hold one", metavar="PATH", positional=True
    )
    output: str = option("comparison.html", help="HTML file to write", metavar="FILE")

    def check(self) -> Iterator[UserError]:
        if len(self.runs) < 2:
            hint = "give the pages of two or more runs, or their output folders"
            yield UserError(f"{len(self.runs)} run to compare" if self.runs else "no runs to compare", hint=hint)


def compare(argv: Sequence[str]) -> None:
    """Raises `UserError` for all pages that cannot be read, and where the comparison cannot be written."""
    options = parse_options(argv, (CompareOptions,), program="compare_runs", description=__doc__)[CompareOptions]
    pages: list[ReadPage] = []
    errors: list[UserError] = []
    for given in options.runs:
        try:
            pages.append(read_page(find_page(given)))
        except UserError as error:
            errors.append(error)
    raise_together(errors)
    output = Path(options.output)
    if output.absolute() in [page.path.absolute() for page in pages]:
        raise UserError(f"--output {output} is one of the pages to compare", hint="name another file")
    try:
        write_text(output, comparison_page(compared(pages)))
    except OSError as error:
        message = f"--output {output} cannot be written: {error.strerror or error}"
        raise UserError(message, hint="name a file in a folder that can be written to") from None
    logger.info("comparison of %d runs written to %s (open it in a browser)", len(pages), output.absolute())


if __name__ == "__main__":
    sys.exit(run_entry(lambda: compare(sys.argv[1:])))
