"""If this fails, a run that is killed leaves files that are not whole, or does not end with the same weights."""

import re
import sys

import pytest

from tests import programs


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed otherwise there")
def test_kills_at_any_time_lose_nothing():
    done = programs.run(["benchmarks/faults.py", "--kills", "10", "--steps", "8"], timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    figures = dict(re.findall(r"^ *(.+?)  +(\d+|yes|no)\b", done.stdout, re.MULTILINE))
    assert figures["kills"] == "10" and int(figures["in the middle of a save"]) >= 3
    assert figures["corrupt or partial visible files"] == "0"
    assert figures["final weights equal to the whole run's"] == "yes"
