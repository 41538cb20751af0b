"""Kills a tiny run with SIGKILL at random instants, lets it go on with --resume auto, and looks at what it leaves.

    python benchmarks/faults.py --kills 200

A good part of the kills hit a save: the run saves at every step, and every second kill waits for an unfinished file.
After each, every visible file must be whole; at the end of each run its weights must equal, bit for bit, those of a run
that was never killed. Processes are forked from one that has imported everything, so that a start takes no seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from library.cli.errors import UserError  # noqa: E402
from library.training.checkpoints.resuming import read_whole_state  # noqa: E402
from library.training.checkpoints.saved_names import saved_under  # noqa: E402
from library.training.checkpoints.states import read_state  # noqa: E402

EXAMPLE = ROOT / "examples" / "quickstart"
NAME = "run"


@dataclass
class Findings:
    """What was seen over all kills."""

    kills: int = 0
    kills_in_saves: int = 0
    runs: int = 0
    bad_files: list[str] = field(default_factory=list)
    unequal_runs: list[str] = field(default_factory=list)
    failed_starts: list[str] = field(default_factory=list)


def run_arguments(output: Path, num_steps: int, *more: str) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(EXAMPLE / "base"), "--train_data_dir", str(output.parent / "images"),
        "--caption_extension", ".txt", "--resolution", "64", "--train_batch_size", "1", "--cache_latents",
        "--max_data_loader_n_workers", "0", "--output_dir", str(output), "--output_name", NAME, "--network_dim", "2",
        "--learning_rate", "1e-3", "--seed", "7", "--max_train_steps", str(num_steps), "--save_every_n_steps", "1",
        "--save_state", "--save_last_n_steps", "3", "--ema", *more,
    ]  # fmt: skip


def start(train: Callable[[list[str]], None], argv: list[str], log: Path) -> int:
    """The process that trains; it ends without clearing up, as a killed one does."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        from library.cli.entry import run_entry

        status = run_entry(lambda: train(argv))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def unfinished(output: Path) -> set[str]:
    """Names of files and folders that are being written, or were when a process was killed."""
    try:  # not by a pattern: it is looked at all the time
        return {name for name in os.listdir(output) if name.startswith(".") and "tmp" in name}
    except FileNotFoundError:
        return set()


def wait_and_kill(child: int, output: Path, rng: random.Random, longest: float, in_save: bool) -> int | None:
    """Kills the process after a while, `in_save` when it next writes; its exit status if it was done before."""
    deadline, before = time.monotonic() + rng.uniform(0, longest), unfinished(output)
    while time.monotonic() < deadline or (in_save and unfinished(output) <= before):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def bad_files(output: Path) -> list[str]:
    """Visible files of the run that are not whole."""
    bad = []
    for saved in saved_under(output, NAME):
        try:
            if saved.is_state:
                read_whole_state(str(saved.path))
                read_state(saved.path)
            else:
                load_file(saved.path)
        except (UserError, SafetensorError, OSError) as error:
            bad.append(f"{saved.path.name}: {error}")
    page = output / f"{NAME}-run.html"
    if page.exists() and not page.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        bad.append(f"{page.name}: cut off")
    known = {page, *(saved.path for saved in saved_under(output, NAME))}
    strange = [path for path in output.iterdir() if not path.name.startswith(".") and path not in known]
    return bad + [f"{path.name}: not a file of the run" for path in strange]


def kill_until_done(
    train: Callable[[list[str]], None],
    output: Path,
    findings: Findings,
    num_kills: int,
    num_steps: int,
    rng: random.Random,
    longest: float,
) -> None:
    """One run of `num_steps`, killed again and again until it is done or `num_kills` are reached; then it may end.

    longest: seconds until a kill at most.
    """
    log = output.parent / "log.txt"
    while True:
        before = unfinished(output)
        child = start(train, run_arguments(output, num_steps, "--resume", "auto"), log)
        if findings.kills < num_kills:
            in_save = findings.kills % 2 == 1
            status = wait_and_kill(child, output, rng, longest, in_save)
        else:
            in_save, status = False, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if output.exists():
            findings.bad_files += bad_files(output)
        if status is not None:
            if status:
                findings.failed_starts.append(log.read_text()[-2000:])
            return
        findings.kills += 1
        findings.kills_in_saves += not unfinished(output) <= before


def measure(num_kills: int, num_steps: int, folder: Path, seed: int = 0) -> Findings:
    """Runs, kills and compares in `folder`."""
    import library.training.run  # noqa: F401 - imported once, for all that is forked
    import train_network

    torch.set_num_threads(1)  # threads do not survive a fork
    images = folder / "images" / "1_shs fox"
    images.mkdir(parents=True)
    for image in sorted((EXAMPLE / "images").glob("fox_0[1-4].*")):
        shutil.copy(image, images)
    started = time.monotonic()
    child = start(train_network.train, run_arguments(folder / "whole", num_steps), folder / "log.txt")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise RuntimeError((folder / "log.txt").read_text()[-2000:])
    duration = time.monotonic() - started
    expected = load_file(folder / "whole" / f"{NAME}.safetensors")
    findings, rng = Findings(), random.Random(seed)
    while findings.kills < num_kills and not findings.failed_starts:
        output = folder / f"killed{findings.runs}"
        kill_until_done(train_network.train, output, findings, num_kills, num_steps, rng, 0.6 * duration)
        findings.runs += 1
        if not findings.failed_starts:
            found = load_file(output / f"{NAME}.safetensors")
            if found.keys() != expected.keys() or any(not torch.equal(found[key], expected[key]) for key in expected):
                findings.unequal_runs.append(output.name)
        shutil.rmtree(output, ignore_errors=True)
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=30, help="of a run, each of which is saved")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        findings = measure(options.kills, options.steps, Path(folder), options.seed)
    is_equal = not findings.unequal_runs and not findings.failed_starts
    print(f"kills                                  {findings.kills} in {findings.runs} runs")
    print(f"  in the middle of a save               {findings.kills_in_saves}")
    print(f"corrupt or partial visible files        {len(findings.bad_files)}")
    print(f"starts that failed                      {len(findings.failed_starts)}")
    print(f"final weights equal to the whole run's  {'yes' if is_equal else 'no'}")
    print(f"seconds                                 {time.monotonic() - started:.0f}")
    for line in [*findings.bad_files, *findings.failed_starts]:
        print(f"  {line}")
    return 0 if is_equal and not findings.bad_files else 1


if __name__ == "__main__":
    sys.exit(main())
