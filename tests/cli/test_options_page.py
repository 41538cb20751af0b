"""If this fails, the pages of options tell users something else than `--help`: run `python docs/make_options.py`."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_pages_of_options_are_up_to_date():
    pages = runpy.run_path(str(DOCS / "make_options.py"))["pages"]()
    assert set(pages) == {path.name for path in DOCS.glob("options*.md")}
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text
        assert "`no`, `fp16`, `bf16`" in text
    assert "| `--network_dim` | whole number | `4` |" in pages["options.md"]
    assert "| `--stop_text_encoder_training` | whole number |" in pages["options_train_db.md"]
    assert "| `--train_text_encoder` |  |  |" in pages["options_fine_tune.md"]
    assert "--no_token_padding" not in pages["options_fine_tune.md"]
    assert "| `--token_string` | text | required |" in pages["options_train_textual_inversion.md"]
