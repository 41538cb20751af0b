"""If this fails, a script lacks an option that users' commands have, or it means something else by default."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from library.cli.options import option_fields
from tests.programs import ROOT

SCRIPTS = sorted(
    f"{folder}.{path.stem}"
    for folder in ("finetune", "networks")
    for path in (ROOT / folder).glob("*.py")
    if "JOB" in path.read_text(encoding="utf-8")
)
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
    job, reference_flags = importlib.import_module(script).JOB, REFERENCE.get(f"{script.partition('.')[2]}.py", {})
    fields = [field for owner in job.option_groups for field in option_fields(owner)]
    positional = [field.name for field in fields if field.spec.positional]
    required = [name for name in reference_flags if not name.startswith("-")]
    assert positional[: len(required)] == required
    by_name = {f"--{spelling}": field for field in fields for spelling in field.spellings}
    for flag, reference in reference_flags.items():
        if not flag.startswith("-"):
            continue
        flag = flag.split()[-1]  # behind its spelling of one letter
        default = by_name[flag].default
        if reference.get("action") == "store_true":
            assert default is False, flag  # where it is None there, that is off too
        elif flag not in DEFAULTS:
            usual = reference.get("default")
            assert default == usual or (default, usual) in ((None, ""), ((), None)), flag
        elif DEFAULTS[flag] is not None:
            assert default == DEFAULTS[flag], flag
        if "choices" in reference:
            choices = [choice for choice in reference["choices"] if choice is not None]
            assert by_name[flag].spec.choices == tuple(choices), flag
