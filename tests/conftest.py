"""One thread for each test process: tiny models gain nothing from more, and a busy machine loses much."""

import logging
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _levels_of_loggers():
    """A run in the test's own process sets what the console shows; the next test starts as a new process would."""
    yield
    for name in ("library", "networks", "__main__"):
        logging.getLogger(name).setLevel(logging.NOTSET)
