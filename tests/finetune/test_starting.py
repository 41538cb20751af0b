"""If this fails, a stand-alone script starts slowly, or not from everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("finetune", "networks")
SCRIPTS = [
    path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py")) if "JOB" in path.read_text("utf-8")
]
# runs each of them on the rest of the command line, and names what it has imported
CODE = """
import runpy, sys
scripts, words = sys.argv[1].split(","), sys.argv[2:]
for script in scripts:
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(script, end.code)
slow = ("torch", "numpy", "diffusers", "transformers", "accelerate", "onnxruntime", "cv2", "tqdm")
print([name for name in slow if name in sys.modules])
"""


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["--no_such_option", "--recursiv"], 2)])
def test_help_and_mistakes_are_answered_without_slow_imports(words, status, tmp_path):
    paths = ",".join(map(str, SCRIPTS))
    done = subprocess.run([sys.executable, "-c", CODE, paths, *words], cwd=tmp_path, capture_output=True, text=True)
    *ended, imported = done.stdout.splitlines()
    assert imported == "[]", done.stderr
    assert [line for line in ended if line.startswith(str(ROOT))] == [f"{p} {status}" for p in paths.split(",")]


def test_scripts_run_from_their_folder_and_from_another(tmp_path):
    """The checkout's own library is found, whatever lies in the current folder."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "__init__.py").write_text("raise ImportError")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for script in (SCRIPTS[0], SCRIPTS[-1]):
        for name, folder in ((script.name, script.parent), (script, tmp_path)):
            done = subprocess.run([sys.executable, name, "--help"], cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr
