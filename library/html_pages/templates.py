"""The environment of page templates: everything is escaped, and a name that is missing is an error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent


def page_environment(folder: Path) -> Environment:
    """For the templates in `folder`, which may import `parts.html.jinja`."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_style(own: Path) -> str:
    """The style sheet of all pages, and a page's own after it."""
    return "".join(path.read_text(encoding="utf-8") for path in (_HERE / "base.css", own))
