"""If these fail, a reader of the pages is sent to a file that is not there, or types a command that is refused."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest

from library.cli.foreign_options import ForeignOptions
from library.cli.options import option_fields
from library.cli.parser import ConfigFileOptions, read_options
from library.models.convert import ConvertOptions
from library.tools.compare_runs import CompareOptions
from library.training.evaluation.prompts import LINE_OPTIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if not (path.name.startswith("options") or path.name == "compatibility.md")  # made from the declarations
)
TRAINING = (
    "train_network", "train_db", "fine_tune", "train_textual_inversion", "train_leco", "sdxl_train_leco",
    "sdxl_train_network", "sdxl_train", "sdxl_train_textual_inversion",
)  # fmt: skip
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
# options of pip, pytest, tensorboard, git, torchrun and accelerate's launcher, which pages name
OTHER_PROGRAMS = {
    "--index-url", "--force-reinstall", "--logdir", "--durations", "--check", "--dist", "--extra-index-url",
    "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port", "--multi_gpu",
    "--use_fsdp", "--use_deepspeed", "--fsdp_version", "--fsdp_auto_wrap_policy", "--deps",
}  # fmt: skip


def option_groups(script: str) -> tuple[type, ...]:
    """Of an entry script, named as on a command line."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    job = getattr(module, "JOB", None)
    return module.OPTION_GROUPS if job is None else job.option_groups


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands() -> list[tuple[str, list[str]]]:
    """(script, words behind it) of every command in a block of a shell."""
    found = []
    for page in PAGES:
        for text in blocks(page, "sh", "bash", "shell", ""):
            for line in text.replace("\\\n", " ").splitlines():
                if ".py" not in line or line.lstrip().startswith("#"):
                    continue
                for part in line.split("&&"):
                    try:
                        words = shlex.split(part, comments=True)
                    except ValueError:  # no command line
                        continue
                    at = next((number for number, word in enumerate(words) if word.endswith(".py")), 0)
                    starts = re.fullmatch(r"(.*/)?(python|accelerate)", words[0]) if words else None
                    if at and starts and (ROOT / words[at]).is_file():
                        found.append((words[at], words[at + 1 :]))
    return found


@pytest.mark.parametrize(
    ("script", "words"), [pytest.param(*each, id=" ".join([each[0], *each[1]])[:80]) for each in commands()]
)
def test_commands_are_taken(script, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_MODE", "offline")  # needs no access key
    if not hasattr(importlib.import_module(script.removesuffix(".py").replace("/", ".")), "OPTION_GROUPS") and (
        not script.startswith(("finetune/", "networks/"))
    ):
        pytest.skip("no script whose options are declared in groups")
    argv = [word for word in words if word != "..."]
    at = argv.index("--config_file") if "--config_file" in argv else None
    is_cut = "..." in words or at is not None
    if at is not None and not (ROOT / argv[at + 1]).is_file():  # of the reader's own
        del argv[at : at + 2]
    _, errors = read_options(argv, option_groups(script), program=script, description="", foreign=ForeignOptions())
    not_here = ("is missing", "no training data is given") if is_cut else ()
    endings = ("there is no such file or folder", "there is no such file", "does not exist")
    problems = [error.message for error in errors if not any(text in error.message for text in (*not_here, *endings))]
    assert problems == []


def test_there_are_commands_to_look_at():
    scripts = {script for script, _ in commands()}
    assert {f"{name}.py" for name in TRAINING} <= scripts and len(commands()) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in _LINK.findall(text):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:|mailto:", target):
            continue
        linked = page if not path else (page.parent / path)
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_modules_that_pages_name_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(
        r"(?<![\w/.-])((?:tests|examples|docs|library|networks|finetune|benchmarks)/[\w/.-]*\w)(?![\w*])", text
    )
    modules = re.findall(r"python -m ((?:library|networks|finetune|benchmarks|train_|fine_)[\w.]*\w)", text)
    names = [*paths, *(f"{module.replace('.', '/')}.py" for module in modules if "NAME" not in module)]
    assert [name for name in names if not any((ROOT / f"{name}{end}").exists() for end in ("", ".py"))] == []


def test_images_of_pages_are_small():
    """A page that loads megabytes is slow to read, and a clone of them slow to make."""
    images = {page.parent / target for page in PAGES for target in _IMAGE.findall(page.read_text(encoding="utf-8"))}
    assert len(images) >= 4
    assert [path.name for path in images if path.is_file() and path.stat().st_size >= 300_000] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_toml_is_toml(page):
    for text in blocks(page, "toml"):
        assert tomllib.loads(text)


CONFIGURATIONS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "toml"))
    if "pretrained_model_name_or_path" in text
]


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_configurations_are_taken(text, tmp_path):
    """Those to copy, for train_network.py."""
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    argv = ["--config_file", str(path)]
    _, errors = read_options(argv, option_groups("train_network"), program="", description="", foreign=ForeignOptions())
    absent = ("there is no such file or folder", "does not exist")
    assert [error.message for error in errors if not any(text in error.message for text in absent)] == []


def test_messages_that_the_page_of_troubles_quotes_are_given():
    """Who searches for what the program has said finds it."""
    rows = re.findall(
        r"^\| (`.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row) if " " in text]
    said = texts_of_library()
    assert len(quoted) >= 10
    assert [text for text in quoted if text not in said and "No module" not in text] == []


def texts_of_library() -> str:
    """All texts in the code, a line each; what is filled in is left out."""
    lines = []
    for path in (ROOT / "library").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "" for part in node.values]
                lines.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines)


@cache
def known_flags() -> set[str]:
    """Of all scripts and tools, of prompts' lines, and of other programs that pages name."""
    scripts = [f"{name}.py" for name in TRAINING]
    paths = (path for folder in ("finetune", "networks") for path in (ROOT / folder).glob("*.py"))
    scripts += [f"{path.parent.name}/{path.name}" for path in paths if "JOB" in path.read_text(encoding="utf-8")]
    found = {"--help", *OTHER_PROGRAMS}
    for script in scripts:
        for owner in (*option_groups(script), ConfigFileOptions):
            found |= {f"--{name}" for field in option_fields(owner) for name in field.spellings}
    for owner in (ConvertOptions, CompareOptions):
        found |= {f"--{name}" for field in option_fields(owner) for name in field.spellings}
    found |= {f"--{letters}" for letters in LINE_OPTIONS}
    for path in (
        path for folder in ("benchmarks", "examples", "library", "networks") for path in (ROOT / folder).rglob("*.py")
    ):
        found |= set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_that_pages_name_exist(page):
    text = page.read_text(encoding="utf-8")
    named = {flag.replace("--no-", "--") for flag in re.findall(r"(?<![\w-])(--[a-z][\w-]+)(?![\w<*-])", text)}
    assert {flag for flag in named if not flag.endswith("_")} - known_flags() == set()
