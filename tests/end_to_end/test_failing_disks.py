"""If these fail, a disk that fills up, or goes read-only, under a run takes the run or its earlier files with it.

The output folder is a disk of its own (tmpfs), mounted where only the run's processes see it.
"""

from __future__ import annotations

import sys

import pytest
from safetensors.torch import load_file

from tests import programs
from tests.end_to_end.runs import arguments, assert_same, train

# what befalls the disk once a first save is there; retried until nothing is open for writing
READ_ONLY = 'until mount -o remount,ro "$0"; do sleep 0.02; done'
# a save that fails gives its space back, which is filled again
FULL = 'while kill -0 $PPID; do cat /dev/zero >> "$0/filler"; sleep 0.02; done'
IN_OWN_MOUNTS = """
import atexit, ctypes, os, runpy, shutil, subprocess, sys
from pathlib import Path

output, kept, options, event, *sys.argv = sys.argv[1:]
maps = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS):
    os._exit(99)
for name, text in maps.items():
    Path("/proc/self", name).write_text(text)
for words in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", options, "disk", output]):
    if subprocess.run(["mount", *words]).returncode:
        os._exit(99)
saved = 'until ls "$0"/run-step*.safetensors; do sleep 0.02; kill -0 $PPID || exit; done; '
subprocess.Popen(["sh", "-c", f"exec >/dev/null 2>&1; {saved} {event}", output])
atexit.register(lambda: [shutil.copy(path, kept) for path in Path(output).glob("*.safetensors")])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def in_own_mounts(argv, output, kept, options="size=16m", event="true"):
    """Trains on a disk of its own, to which something happens; skips where no mounts are permitted."""
    output.mkdir()
    kept.mkdir()
    done = programs.run(["-c", IN_OWN_MOUNTS, output, kept, options, event, "train_network.py", *argv])
    if done.returncode == 99:
        pytest.skip(f"no mounts: {done.stderr[-200:]}")
    return done


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are those of Linux")
@pytest.mark.parametrize(("event", "reason"), [(READ_ONLY, "Read-only file system"), (FULL, "No space left on device")])
def test_earlier_files_stay_and_training_goes_on(data_dir, tmp_path, event, reason):
    output, kept = tmp_path / "output", tmp_path / "kept"
    options = {"max_train_steps": 40, "save_every_n_steps": 2, "save_last_n_steps": 2, "save_state": True}
    done = in_own_mounts(arguments(data_dir, output, logging_dir=None, **options), output, kept, event=event)
    assert done.returncode == 2, done.stderr[-3000:]
    lines = done.stderr.splitlines()
    assert any("cannot be written: " in line and reason in line for line in lines) and "Traceback" not in done.stderr
    assert "40/40" in done.stderr  # it was trained to the end
    assert "of the run's files are missing" in lines[-2] and "free disk space or check --output_dir" in lines[-1]
    saved = sorted(kept.glob("*.safetensors"))
    # none of them went while no newer one could be written
    assert saved and "run.safetensors" not in [path.name for path in saved]
    options = {"max_train_steps": int(saved[-1].stem[-8:]), "save_every_n_steps": None}
    whole = train(data_dir, tmp_path / "whole", logging_dir=None, **options)
    assert_same(load_file(saved[-1]), whole)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are those of Linux")
def test_a_folder_that_is_read_only_from_the_start_is_said_before_anything_is_loaded(data_dir, tmp_path):
    output, kept = tmp_path / "output", tmp_path / "kept"
    done = in_own_mounts(arguments(data_dir, output), output, kept, options="ro")
    assert done.returncode == 2
    assert f"error: --output_dir {output} cannot be written to" in done.stderr and "loaded" not in done.stderr
