"""Writes the pages of options from their declarations: python docs/make_options.py"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import train_network  # noqa: E402
import train_textual_inversion  # noqa: E402
from library.cli.options_page import options_page  # noqa: E402
from library.cli.parser import ConfigFileOptions  # noqa: E402

_SHARED = set(train_network.OPTION_GROUPS)


def pages() -> dict[Path, str]:
    """The text of each page. That of the LoRA script holds all that the scripts share, others what is theirs alone."""
    own = [group for group in train_textual_inversion.OPTION_GROUPS if group not in _SHARED]
    return {
        DOCS / "options.md": options_page("train_network.py", (*train_network.OPTION_GROUPS, ConfigFileOptions)),
        DOCS / "options_textual_inversion.md": options_page(
            "train_textual_inversion.py",
            own,
            note="It has all groups of [options.md](options.md) but that of the LoRA network, and in its place:",
        ),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
