"""Peak memory of a training of one step of a LoRA, beside the same by PyTorch, Diffusers and Transformers alone.

    python -m benchmarks.step_memory

On a model of SD 1.5's geometry with a third of its width (about 100 million parameters in the U-Net), random weights.
Peaks are of whole processes, resident, libraries and model included. Unix only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.commands import bare_lora_step, costs_in_turns, lora_step
from benchmarks.figures import Figure, main, ratio
from benchmarks.random_models import make_model


def figures(num_rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(1 / 3, [("diffusers_safetensors", "float32", folder / "model")])
        commands = {
            "bare": bare_lora_step(folder / "model", folder),
            "step": lora_step(folder / "model", folder),
        }
        costs = costs_in_turns(commands, num_rounds, folder)
    peaks = {name: tuple(cost.peak / 1e6 for cost in each) for name, each in costs.items()}
    return [
        Figure("one step of a LoRA, peak", peaks["step"], "MB"),
        ratio("its peak / bare", peaks["step"], peaks["bare"], 1.05),
    ]


if __name__ == "__main__":
    main(__doc__, figures)
