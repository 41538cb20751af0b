"""If this fails, a run on Windows reads captions or options otherwise, or its loader does not start there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.end_to_end.runs import ROOT, arguments, assert_same, copy_images, train

# Windows and macOS spawn the loader's processes; a file of its own, since these import the main module again
SPAWNING = """import multiprocessing
import sys

import train_network

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    train_network.train(sys.argv[1:])
"""
# the locale's encoding is then ASCII, which fails where Windows' code pages give other characters
NOT_UTF_8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sets the locale as Linux does")
def test_spawned_workers_and_another_encoding_train_the_same(tmp_path):
    data = copy_images(tmp_path / "data", count=3)
    for number, path in enumerate(sorted(data.rglob("*.txt"))):
        path.write_text(f"ein grüner Fuchs, 狐 {number}", encoding="utf-8")
    config = tmp_path / "config.toml"
    config.write_text('training_comment = "für 狐"\n', encoding="utf-8")
    options = {"max_train_steps": 2, "config_file": config, "logging_dir": None}

    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING, encoding="utf-8")
    argv = arguments(data, tmp_path / "spawned", **options, max_data_loader_n_workers=1)
    environment = os.environ | NOT_UTF_8 | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script), *argv], env=environment, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")

    saved = tmp_path / "spawned" / "run.safetensors"
    assert_same(load_file(saved), train(data, tmp_path / "here", **options))
    with safe_open(saved, "pt") as file:
        assert file.metadata()["ss_training_comment"] == "für 狐"
