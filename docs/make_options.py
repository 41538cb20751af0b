"""Writes docs/options.md from the declarations of the options: python docs/make_options.py"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train_network  # noqa: E402
from library.cli.options_page import options_page  # noqa: E402
from library.cli.parser import ConfigFileOptions  # noqa: E402

PAGE = ROOT / "docs" / "options.md"


def page() -> str:
    return options_page("train_network.py", (*train_network.OPTION_GROUPS, ConfigFileOptions))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
