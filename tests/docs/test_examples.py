"""If these fail, somebody who follows the README of an example does not get to its image of before and after."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests import programs

ROOT = programs.ROOT
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/README.md"))
_COMMAND = re.compile(r"^(?: {4})?(python .+)$", re.MULTILINE)  # in a block, fenced or indented
SHORTER = ["--max_train_steps", "2", "--sample_every_n_steps", "2", "--no_run_report"]


def commands(example: Path) -> list[str]:
    """What the README has the reader run, up to the training."""
    found = _COMMAND.findall((example / "README.md").read_text(encoding="utf-8"))
    training = next(number for number, command in enumerate(found, 1) if "config.toml" in command)
    return found[:training]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with the examples in it, for what they write."""
    path = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "examples", path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_ends_with_images_of_before_and_after(example, folder):
    known = set(folder.glob("output/*"))
    lines = commands(example)
    for number, line in enumerate(lines, 1):
        script, *words = shlex.split(line)[1:]
        more = SHORTER if number == len(lines) else []
        ended = programs.run([ROOT / script, *words, *more], cwd=folder)
        assert ended.returncode == 0, f"{line}\n{ended.stdout}\n{ended.stderr}"
    (output,) = set(folder.glob("output/*")) - known
    before, after = (sorted((output / "sample").glob(f"*_{step}_00_*.png")) for step in ("000000", "000002"))
    assert before and after
    with Image.open(output / "sample" / "progress.png") as image:
        assert image.width > 2 * Image.open(before[0]).width


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_commands_are_the_same_in_every_shell(example):
    """Continued lines, variables, quotes and the like differ between bash, PowerShell and cmd."""
    assert commands(example)
    assert [line for line in commands(example) if re.search(r"""[\\^$%`'"&|<>;*~!(){}]""", line)] == []
