"""The house rules that a reader relies on, checked."""

import ast
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
    assert {name: count for name, count in lengths.items() if count > 450} == {}
    assert {path.name for path in ENTRY_SCRIPTS if lengths[path.name] > 100} == set()


def test_functions_fit_on_a_screen():
    long = {}
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 60:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert long == {}


def test_folders_hold_few_modules_and_say_what_lives_there():
    """Entry files that users call by name apart: those lie at the top and directly in networks/ and finetune/."""
    rooms = {path.parent for room in ("library", "networks") for path in (ROOT / room).rglob("*.py")}
    for folder in rooms - {ROOT / "networks"}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 14, folder.relative_to(ROOT)
        face = (folder / "__init__.py").read_text(encoding="utf-8") if modules else ""
        assert folder.name == "library" or (face.startswith('"""') and len(face.splitlines()) == 1), folder


def test_imports_follow_the_contract():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_holds_the_two_commands_that_ci_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("quickstart", "tests"):
        assert re.search(rf"^<!-- {name} -->\n```[a-z]*\n.+?\n```$", readme, re.MULTILINE | re.DOTALL), name


def test_test_files_have_names_of_their_own():
    """pytest cannot collect two modules of one name, unless their folders are packages."""
    alone = [path for path in (ROOT / "tests").rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    twice = {path.name for path in alone if sum(other.name == path.name for other in alone) > 1}
    assert twice == set()
