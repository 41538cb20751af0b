"""If these fail, a script says something else than what it did with its images, or ends with another exit status."""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from library.cli.errors import UserError
from library.cli.jobs.job import Job, run_job
from library.cli.jobs.options import FolderOptions
from library.cli.jobs.processes import own_share
from library.cli.options import option
from tests import programs
from tests.end_to_end.launches import TWO_PROCESSES, ended, start

# a script as users have them: it "does" the numbers 0 to 9, writes them into one file, and fails as it is told
SCRIPT = """
import json, os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from library.cli.jobs.job import Job, main
from library.cli.jobs.processes import own_share, rank_and_count
from library.cli.errors import UserError
from tests.cli.jobs.test_job import NumberOptions

def run(options, outcome):
    rank, fails = rank_and_count()[0], options[NumberOptions].fails
    for number in own_share(range(10)):
        if fails == str(rank):
            raise UserError("out of luck", hint="try again")
        time.sleep(0.05 * rank)  # the second process is the last to finish
        if fails == "odd" and number % 2:
            outcome.failed[str(number)] = "odd"
        else:
            outcome.done += 1
            outcome.results[str(number)] = "x" * 1_500_000  # more than the store takes at once

def conclude(options, outcome):
    lengths = {{number: len(text) for number, text in outcome.results.items()}}
    Path(sys.argv[1]).write_text(json.dumps(lengths))

first = "--first" in sys.argv
sys.argv = [word for word in sys.argv if word != "--first"]
status = main(Job("n.py", "Numbers.", (NumberOptions,), run, "numbered", conclude, first_process_only=first))
Path(sys.argv[1] + f".{{rank_and_count()[0]}}").write_text(str(status))
sys.exit(status)
"""


@dataclass(frozen=True)
class NumberOptions:
    GROUP: ClassVar[str] = "Numbers"

    file: str | None = option(help="where to", positional=True, required=True, metavar="FILE")
    fails: str | None = option(help="which fail")


def job(run):
    return Job("n.py", "Numbers.", (FolderOptions,), run, "numbered")


@pytest.mark.parametrize(
    ("done", "skipped", "failed", "status"), [(3, 0, 0, 0), (0, 3, 0, 0), (2, 0, 1, 1), (0, 1, 1, 1), (0, 0, 2, 2)]
)
def test_the_exit_status_says_whether_some_or_all_failed(done, skipped, failed, status, tmp_path, caplog):
    def run(options, outcome):
        outcome.done = done
        outcome.skipped["kept"] += skipped
        outcome.failed.update({f"{number}.png": "corrupt" for number in range(failed)})

    caplog.set_level("INFO", "library")
    assert run_job(job(run), [str(tmp_path)]) == status
    assert caplog.messages[:-1] == [f"{number}.png: corrupt" for number in range(failed)]
    assert caplog.messages[-1].startswith(f"{done} numbered")


def test_what_was_done_is_kept_and_said_when_an_error_ends_the_work(tmp_path, caplog, capsys):
    kept = []

    def run(options, outcome):
        outcome.done = 2
        outcome.results["a"] = 1
        raise UserError("the disk is full", hint="free some space")

    caplog.set_level("INFO", "library")
    ended_early = Job("n.py", "", (FolderOptions,), run, "numbered", lambda _, outcome: kept.append(outcome.results))
    assert run_job(ended_early, [str(tmp_path)]) == 1
    assert kept == [{"a": 1}] and caplog.messages == ["2 numbered"]
    assert capsys.readouterr().err == "error: the disk is full\n  free some space\n"


def test_after_ctrl_c_what_was_done_is_written(tmp_path):
    kept = []

    def run(options, outcome):
        outcome.results["a"] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(
            Job("n.py", "", (FolderOptions,), run, "numbered", lambda _, outcome: kept.append(outcome.results)), ["x"]
        )
    assert kept == [{"a": 1}]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_everything_once(count, monkeypatch):
    items, shares = list(range(5)), []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))
        shares += own_share(items)
    assert sorted(shares) == items


def launched(tmp_path: Path, *words):
    script, target = tmp_path / "n.py", tmp_path / "numbers.json"
    script.write_text(SCRIPT.format(root=str(programs.ROOT)))
    said = ended(start([str(target), *words], *TWO_PROCESSES, script=str(script)))
    statuses = [Path(f"{target}.{rank}").read_text() for rank in range(2)]
    own = re.split(r"^E\d{4} .*torch/distributed/elastic/", said, flags=re.MULTILINE)[
        0
    ]  # the launcher repeats the error
    return json.loads(target.read_text()) if target.exists() else None, statuses, own


@pytest.mark.slow
def test_two_processes_share_the_work_and_end_alike(tmp_path):
    numbers, statuses, said = launched(tmp_path, "--fails", "odd")
    assert numbers == {str(number): 1_500_000 for number in range(0, 10, 2)}
    assert statuses == ["1", "1"]
    assert said.count("5 numbered, 5 failed\n") == 1 and said.count("error: 3: odd\n") == 1


@pytest.mark.slow
def test_an_error_of_one_process_is_said_once_and_ends_all_alike(tmp_path):
    numbers, statuses, said = launched(tmp_path, "--fails", "1")
    assert len(numbers) == 5 and statuses == ["1", "1"]
    assert "5 numbered\nerror: out of luck\n  try again\n" in said and said.count("error: out of luck") == 1


@pytest.mark.slow
def test_what_the_first_process_does_alone_ends_all_alike(tmp_path):
    numbers, statuses, said = launched(tmp_path, "--first", "--fails", "0")
    assert numbers is None and statuses == ["2", "2"] and said.count("error: out of luck") == 1


@pytest.mark.slow
def test_processes_that_something_else_has_started_end_alike_too(tmp_path):
    """Without the launcher's own store the first process holds it, and stays until the last has read."""
    script, target = tmp_path / "n.py", tmp_path / "numbers.json"
    script.write_text(SCRIPT.format(root=str(programs.ROOT)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        programs.start([script, target, "--fails", "odd"], env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1], said
    assert said[0].endswith("5 numbered, 5 failed\n") and said[1] == ""
