"""The house rules that a reader relies on, checked."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENTRY_SCRIPTS = [path for path in ROOT.glob("*.py") if path.name != "setup.py"]


def source_files():
    rooms = [path for room in ("library", "networks", "finetune") for path in (ROOT / room).rglob("*.py")]
    return rooms + ENTRY_SCRIPTS


def test_files_stay_readable():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()
    }
    assert len(lengths) > 30
    assert {name: count for name, count in lengths.items() if count > 500} == {}
    assert {path.name for path in ENTRY_SCRIPTS if lengths[path.name] > 100} == set()


def test_imports_follow_the_contract():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_holds_the_two_commands_that_ci_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("quickstart", "tests"):
        assert re.search(rf"^<!-- {name} -->\n```[a-z]*\n.+?\n```$", readme, re.MULTILINE | re.DOTALL), name
