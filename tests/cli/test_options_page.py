"""If this fails, docs/options.md tells users something else than `--help`: run `python docs/make_options.py`."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_options_is_up_to_date():
    page = runpy.run_path(str(DOCS / "make_options.py"))["page"]()
    assert (DOCS / "options.md").read_text(encoding="utf-8") == page
    assert "| `--network_dim` | whole number | `4` |" in page
    assert "`no`, `fp16`, `bf16`" in page
