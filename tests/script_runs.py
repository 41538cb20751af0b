"""Stand-alone scripts as they are run in the test's own process: the fixture `run`, which a conftest.py imports."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from library.cli.errors import UserError
from library.cli.jobs.job import Job, run_job


@dataclass
class Ended:
    """How a script has ended: its status, what it has logged, the error that ended it, and its output, in lines."""

    status: int
    lines: list[str]
    error: list[str]
    shown: list[str]


@pytest.fixture(name="run")
def run_script(caplog, capsys):
    """Runs a script's job on a command line, as its file would."""

    def run(job: Job, *argv: object) -> Ended:
        caplog.clear()
        for name in ("library", "networks"):
            caplog.set_level(logging.INFO, name)
        try:
            status = run_job(job, [str(word) for word in argv])
        except UserError as error:
            return Ended(2, caplog.messages, str(error).splitlines(), [])
        said = capsys.readouterr()
        _, is_error, error = said.err.rpartition("error: ")
        return Ended(status, caplog.messages, error.splitlines() if is_error else [], said.out.splitlines())

    return run
