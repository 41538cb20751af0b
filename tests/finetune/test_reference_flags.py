"""If this fails, a script lacks an option that users' commands have, or it means something else by default."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from library.cli.options import option_fields
from tests.programs import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "finetune").glob("*.py") if path.name != "__init__.py")
# the flags of the scripts of the same names that others have written, with their defaults
REFERENCE = json.loads((Path(__file__).parent / "reference_flags.json").read_text(encoding="utf-8"))
# what these defaults are here: names of what is downloaded, which the other scripts have as an address or a constant
DEFAULTS = {
    "--repo_id": "SmilingWolf/wd-v1-4-convnext-tagger-v2",
    "--caption_weights": "Salesforce/blip-image-captioning-large",
    "--caption_extention": None,  # the same option as --caption_extension
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_the_field_is_taken_with_its_default(script):
    job = importlib.import_module(f"finetune.{script.removesuffix('.py')}").JOB
    fields = [field for owner in job.option_groups for field in option_fields(owner)]
    positional = [field.name for field in fields if field.spec.positional]
    required = [name for name in REFERENCE[script] if not name.startswith("--")]
    assert positional[: len(required)] == required
    by_name = {f"--{spelling}": field for field in fields for spelling in field.spellings}
    for flag, reference in REFERENCE[script].items():
        if not flag.startswith("--"):
            continue
        default = by_name[flag].default
        if reference.get("action") == "store_true":
            assert default is False, flag
        elif flag not in DEFAULTS:
            assert default == reference.get("default") or (default, reference["default"]) == (None, ""), flag
        elif DEFAULTS[flag] is not None:
            assert default == DEFAULTS[flag], flag
        if "choices" in reference:
            assert by_name[flag].spec.choices == tuple(reference["choices"]), flag
