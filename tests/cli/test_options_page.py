"""If this fails, the pages of options tell users something else than `--help`: run `python docs/make_options.py`."""

import json
import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_pages_of_options_are_up_to_date():
    pages = runpy.run_path(str(DOCS / "make_options.py"))["pages"]()
    assert set(pages) == {path.name for path in DOCS.glob("options*.md")}
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text
        assert "| `--config_file` | text |" in text
    assert "| `--network_dim` | whole number | `4` |" in pages["options.md"]
    assert "| `--stop_text_encoder_training` | whole number |" in pages["options_train_db.md"]
    assert "| `--train_text_encoder` |  |  |" in pages["options_fine_tune.md"]
    assert "--no_token_padding" not in pages["options_fine_tune.md"]
    assert "| `TRAIN_DATA_DIR` | text | required |" in pages["options_finetune_scripts.md"]
    assert "| `--token_string` | text | required |" in pages["options_train_textual_inversion.md"]


def test_the_page_of_reference_flags_is_up_to_date_and_says_why_where_they_differ():
    module = runpy.run_path(str(DOCS / "make_compatibility.py"))
    assert (DOCS / "compatibility.md").read_text(encoding="utf-8") == module["page"]()
    reference = json.loads((DOCS / "reference_flags.json").read_text(encoding="utf-8"))
    assert len(reference["every script"]) == 156
    for script in module["SCRIPTS"]:
        for flag, declared in {**reference["every script"], **reference[script]}.items():
            state = module["state_of"](script, flag, declared)
            assert state != "missing", (script, flag)
            field = module["option_of"](script, flag.removeprefix("--"))
            if module["differences"](field, declared) and state == "different":
                assert field.name in module["WHY"], (script, flag, module["differences"](field, declared))
