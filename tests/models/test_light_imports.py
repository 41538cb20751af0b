"""What a training program imports, in a process that has imported nothing yet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import importlib.util, json, sys
from library.models.light_imports import import_diffusers
import_diffusers()
import library.methods.adapter, library.models.sdxl.model, library.models.stable_diffusion.model
import library.training.run, networks.lora
unasked = [name for name in ("bitsandbytes", "peft", "scipy", "wandb") if name in sys.modules]
from library.training.evaluation.lms import LMSScheduler
sampler = LMSScheduler()
sampler.set_timesteps(4)
found = [name for name in ("bitsandbytes", "peft", "scipy") if importlib.util.find_spec(name)]
print(json.dumps([unasked, found, sampler.get_lms_coefficient(1, 0, 0)]))
"""


def test_training_imports_no_package_that_it_was_not_asked_for_and_finds_it_when_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    unasked, found, first_step = json.loads(done.stdout.splitlines()[-1])
    assert unasked == []
    assert found == ["bitsandbytes", "peft", "scipy"]
    assert first_step < 0  # of the LMS sampler, for which Diffusers wants SciPy: sigmas decrease
