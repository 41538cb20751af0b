"""Writes the pages of options from their declarations: python docs/make_options.py"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import fine_tune  # noqa: E402
import train_db  # noqa: E402
import train_leco  # noqa: E402
import train_network  # noqa: E402
import train_textual_inversion  # noqa: E402
from library.cli.options import OptionGroup  # noqa: E402
from library.cli.options_page import options_page, scripts_page  # noqa: E402
from library.cli.parser import ConfigFileOptions  # noqa: E402

SCRIPTS = {
    "options.md": ("train_network.py", train_network.OPTION_GROUPS),
    "options_train_db.md": ("train_db.py", train_db.OPTION_GROUPS),
    "options_fine_tune.md": ("fine_tune.py", fine_tune.OPTION_GROUPS),
    "options_train_leco.md": ("train_leco.py", train_leco.OPTION_GROUPS),
    "options_train_textual_inversion.md": ("train_textual_inversion.py", train_textual_inversion.OPTION_GROUPS),
}
# folder -> title and file of the page on its stand-alone scripts
STAND_ALONE = {
    "finetune": ("the scripts in finetune/", "options_finetune_scripts.md"),
    "networks": ("the tools on LoRA weight files in networks/", "options_network_tools.md"),
}


def pages() -> dict[str, str]:
    """The text of each page, under the name of its file."""
    made = {name: options_page(program, (*groups, ConfigFileOptions)) for name, (program, groups) in SCRIPTS.items()}
    return {
        **made,
        **{name: scripts_page(title, _tables(folder)) for folder, (title, name) in STAND_ALONE.items()},
    }


def _tables(folder: str) -> dict[str, tuple[type[OptionGroup], ...]]:
    """The groups of options of each script in a folder; a script's file names its `JOB`."""
    paths = sorted((DOCS.parent / folder).glob("*.py"))
    names = [path.stem for path in paths if "JOB" in path.read_text(encoding="utf-8")]
    jobs = {f"{folder}/{name}.py": importlib.import_module(f"{folder}.{name}").JOB for name in names}
    return {name: (*job.option_groups, ConfigFileOptions) for name, job in jobs.items()}


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
