"""If these fail, a disk that fills up, or goes read-only, under a run takes the run or its earlier files with it.

The output folder is a disk of its own (tmpfs), mounted where only the run's processes see it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.end_to_end.runs import ROOT, arguments, assert_same, command, train

# what befalls the disk once a first save is there; retried until nothing is open for writing
READ_ONLY = 'until mount -o remount,ro "$OUT"; do sleep 0.02; done'
# a save that fails gives its space back, which is filled again
FULL = 'while kill -0 $!; do cat /dev/zero >> "$OUT/filler"; done'
RUN = """
mount -t tmpfs -o size=16m disk "$OUT" || exit 99
{training} &
until ls "$OUT"/run-step*.safetensors >/dev/null 2>&1; do sleep 0.02; kill -0 $! || exit 98; done
{event} 2>/dev/null
wait $!
status=$?
cp "$OUT"/*.safetensors "$KEPT"
exit $status
"""


def in_own_mounts(script, output, kept):
    """Runs a shell script that may mount; skips where that is not permitted."""
    output.mkdir()
    kept.mkdir()
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", f"OUT={output}; KEPT={kept}\n{script}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no mounts: {done.stderr[-200:]}")
    return done


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are those of Linux")
@pytest.mark.parametrize(("event", "reason"), [(READ_ONLY, "Read-only file system"), (FULL, "No space left on device")])
def test_earlier_files_stay_and_training_goes_on(data_dir, tmp_path, event, reason):
    output, kept = tmp_path / "output", tmp_path / "kept"
    options = {"max_train_steps": 90, "save_every_n_steps": 2, "save_last_n_steps": 2, "save_state": True}
    argv = arguments(data_dir, output, logging_dir=None, **options)
    done = in_own_mounts(RUN.format(training=shlex.join(command(argv)), event=event), output, kept)
    assert done.returncode == 2, done.stderr[-3000:]
    lines = done.stderr.splitlines()
    assert any("cannot be written: " in line and reason in line for line in lines) and "Traceback" not in done.stderr
    assert "90/90" in done.stderr  # it was trained to the end
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
    script = f'mount -t tmpfs -o ro disk "$OUT" || exit 99\n{shlex.join(command(arguments(data_dir, output)))}'
    done = in_own_mounts(script, output, kept)
    assert done.returncode == 2
    assert f"error: --output_dir {output} cannot be written to" in done.stderr and "loaded" not in done.stderr
