"""If this fails, the pages of options tell users something else than `--help`: run `python docs/make_options.py`."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_pages_of_options_are_up_to_date():
    pages = runpy.run_path(str(DOCS / "make_options.py"))["pages"]()
    assert {path.name for path in pages} == {path.name for path in DOCS.glob("options*.md")}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text
    page = pages[DOCS / "options.md"]
    assert "| `--network_dim` | whole number | `4` |" in page
    assert "`no`, `fp16`, `bf16`" in page
    assert "| `--token_string` | text | required |" in pages[DOCS / "options_textual_inversion.md"]
