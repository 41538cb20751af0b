"""Writes the pages of options from their declarations: python docs/make_options.py"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import fine_tune  # noqa: E402
import train_db  # noqa: E402
import train_network  # noqa: E402
import train_textual_inversion  # noqa: E402
from library.cli.options_page import options_page  # noqa: E402
from library.cli.parser import ConfigFileOptions  # noqa: E402

SCRIPTS = {
    "options.md": ("train_network.py", train_network.OPTION_GROUPS),
    "options_train_db.md": ("train_db.py", train_db.OPTION_GROUPS),
    "options_fine_tune.md": ("fine_tune.py", fine_tune.OPTION_GROUPS),
    "options_train_textual_inversion.md": ("train_textual_inversion.py", train_textual_inversion.OPTION_GROUPS),
}


def pages() -> dict[str, str]:
    """The text of each page, under the name of its file."""
    return {name: options_page(program, (*groups, ConfigFileOptions)) for name, (program, groups) in SCRIPTS.items()}


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
