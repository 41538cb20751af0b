"""If this fails, a run that is killed leaves files that are not whole, or does not end with the same weights."""

import re
import subprocess
import sys

import pytest

from tests.end_to_end.runs import ROOT


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed otherwise there")
def test_twenty_kills_lose_nothing():
    done = subprocess.run(
        [sys.executable, "benchmarks/faults.py", "--kills", "20"], capture_output=True, text=True, cwd=ROOT, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    figures = dict(re.findall(r"^ *(.+?)  +(\d+|yes|no)\b", done.stdout, re.MULTILINE))
    assert figures["kills"] == "20" and int(figures["in the middle of a save"]) >= 5
    assert figures["corrupt or partial visible files"] == "0"
    assert figures["final weights equal to the whole run's"] == "yes"
