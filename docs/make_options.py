"""Writes the pages of options from their declarations: python docs/make_options.py"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import fine_tune  # noqa: E402
import train_db  # noqa: E402
import train_network  # noqa: E402
import train_textual_inversion  # noqa: E402
from library.cli.options_page import options_page, scripts_page  # noqa: E402
from library.cli.parser import ConfigFileOptions  # noqa: E402

SCRIPTS = {
    "options.md": ("train_network.py", train_network.OPTION_GROUPS),
    "options_train_db.md": ("train_db.py", train_db.OPTION_GROUPS),
    "options_fine_tune.md": ("fine_tune.py", fine_tune.OPTION_GROUPS),
    "options_train_textual_inversion.md": ("train_textual_inversion.py", train_textual_inversion.OPTION_GROUPS),
}
STAND_ALONE = sorted(path.stem for path in (DOCS.parent / "finetune").glob("*.py") if path.stem != "__init__")


def pages() -> dict[str, str]:
    """The text of each page, under the name of its file."""
    made = {name: options_page(program, (*groups, ConfigFileOptions)) for name, (program, groups) in SCRIPTS.items()}
    jobs = {f"finetune/{name}.py": importlib.import_module(f"finetune.{name}").JOB for name in STAND_ALONE}
    tables = {name: (*job.option_groups, ConfigFileOptions) for name, job in jobs.items()}
    return {**made, "options_finetune_scripts.md": scripts_page("the scripts in finetune/", tables)}


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
