"""If these fail, a script does not start where it is called from, is slow to answer, or lacks an option others take."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
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
HEAVY = {"torch", "numpy", "cv2", "transformers", "onnxruntime", "huggingface_hub", "tqdm"}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("is_inside", [False, True])
def test_a_script_answers_from_any_folder_without_loading_anything(script, is_inside, tmp_path):
    where, name = (ROOT / "finetune", script) if is_inside else (tmp_path, str(ROOT / "finetune" / script))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-X", "importtime", name, "--nonsense" if is_inside else "--help"]
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert imported and not imported & HEAVY
    if is_inside:
        assert done.returncode == 2 and "error: unknown option --nonsense" in done.stderr
    else:
        assert done.returncode == 0 and "--debug" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_the_field_is_taken_with_its_default(script):
    job = importlib.import_module(f"finetune.{script.removesuffix('.py')}").JOB
    fields = [field for owner in job.option_groups for field in option_fields(owner)]
    positional = [field.name for field in fields if field.spec.positional]
    assert positional == [name for name in REFERENCE[script] if not name.startswith("--")]
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
