"""If this fails, somebody who installs the package misses a file of it, or can use it in the checkout only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.runs import arguments, copy_images

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("library", "networks", "finetune")
SCRIPTS = ("train_network", "train_db", "fine_tune", "train_textual_inversion", "train_leco")
_NOT_COMPILED = shutil.ignore_patterns("__pycache__")


def run(folder: Path, *words: object, **variables: str) -> str:
    """Runs Python in a folder, without what this process was told of the checkout; gives what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that a wheel of this checkout is installed in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # of a copy: building leaves files in its source
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=_NOT_COMPILED)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.txt"), ROOT / "README.md", ROOT / "LICENSE"):
        shutil.copy(path, source)
    run(folder, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    run(folder, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder / "installed", wheel)
    return folder / "installed"


@pytest.mark.slow
def test_a_wheel_holds_all_that_runs(installed):
    files = [path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    wanted = [path for path in files if "__pycache__" not in path.parts] + [Path(f"{name}.py") for name in SCRIPTS]
    assert [str(path) for path in wanted if not (installed / path).is_file()] == []


@pytest.mark.slow
def test_an_installed_wheel_trains_from_another_folder(installed, tmp_path):
    """The checkout is not where Python looks; the run needs the vocabulary and the templates of its page."""
    data = copy_images(tmp_path / "data", count=3)
    argv = arguments(data, Path("output"), max_train_steps=2, network_dim=4, no_run_report=None)
    where = {"PYTHONPATH": str(installed)}
    run(tmp_path, "-m", "train_network", *argv, **where)
    written = {path.name for path in (tmp_path / "output").iterdir()}
    assert {"run.safetensors", "run-run.html"} <= written
    captions = tmp_path / "data" / "2_shs fox"
    run(
        tmp_path,
        "-m",
        "finetune.merge_captions_to_metadata",
        captions,
        "meta.json",
        "--caption_extension",
        ".txt",
        **where,
    )
    assert (tmp_path / "meta.json").is_file()
    code = "import library, networks, train_db; print(library.__file__, networks.__file__, train_db.__file__)"
    assert all(Path(path).is_relative_to(installed) for path in run(tmp_path, "-c", code, **where).split())
