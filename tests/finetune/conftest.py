"""Folders of images, and the scripts as they are run in this process."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from library.cli.errors import UserError
from library.cli.jobs.job import Job, run_job


@dataclass
class Ended:
    """How a script has ended: its status, what it has said, and the lines of the error that ended it."""

    status: int
    lines: list[str]
    error: list[str]


@pytest.fixture
def run(caplog, capsys):
    """Runs a script's job on a command line, as its file would."""

    def run(job: Job, *argv: object) -> Ended:
        caplog.clear()
        caplog.set_level(logging.INFO, "library")
        try:
            status = run_job(job, [str(word) for word in argv])
        except UserError as error:
            return Ended(2, caplog.messages, str(error).splitlines())
        _, is_error, error = capsys.readouterr().err.rpartition("error: ")
        return Ended(status, caplog.messages, error.splitlines() if is_error else [])

    return run


def save_colours(path, size, colour):
    """An image of one colour (R, G, B)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), colour, np.uint8)).save(path)
    return path
