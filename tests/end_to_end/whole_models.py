"""Runs of `train_db.py` and `fine_tune.py`, and what Diffusers reads of the models that they save."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline

import fine_tune
import train_db
from tests.end_to_end.runs import BASE, arguments

SCRIPTS = {"train_db": train_db, "fine_tune": fine_tune}
PARTS = ("unet", "text_encoder", "vae")
Weights = dict[str, dict[str, torch.Tensor]]  # part -> name -> tensor


def write_metadata(data: Path) -> dict[str, Path]:
    """The options that describe the images of `copy_images` to `fine_tune.py`: same images, captions, repeats."""
    (folder,) = data.iterdir()
    entries = {
        image.name: {"caption": image.with_suffix(".txt").read_text().strip()} for image in sorted(folder.glob("*.png"))
    }
    path = data.parent / "meta.json"
    path.write_text(json.dumps(entries))
    return {"train_data_dir": folder, "in_json": path, "dataset_repeats": 2}


def train_whole(script: str, data: Path | None, output: Path, **overrides) -> None:
    """Runs a script in this process, as if in one of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    described = write_metadata(data) if script == "fine_tune" and data is not None else {}
    options = {"max_train_steps": 4, "logging_dir": None, **described, **overrides}
    SCRIPTS[script].train(arguments(data, output, **options))


def read_model(path: Path, config: Path = BASE) -> Weights:
    """The parts of a saved model, folder or file, as Diffusers reads them."""
    if path.is_dir():
        pipe = StableDiffusionPipeline.from_pretrained(path, torch_dtype=torch.float32, local_files_only=True)
    else:
        pipe = StableDiffusionPipeline.from_single_file(
            str(path), config=str(config), torch_dtype=torch.float32, local_files_only=True
        )
    return {part: dict(getattr(pipe, part).state_dict()) for part in PARTS}


def changed_parts(weights: Weights, others: Weights) -> set[str]:
    """The parts of which any bit differs."""
    for part in PARTS:
        assert weights[part].keys() == others[part].keys()
    return {
        part
        for part in PARTS
        if any(not torch.equal(tensor, others[part][name]) for name, tensor in weights[part].items())
    }


def assert_alike(output: Path, other: Path, parts: set[str]) -> None:
    """Two runs saved the same model, but for the last bits of sums; `parts` of it, and no others, have learned."""
    model, wanted = read_model(output / "run"), read_model(other / "run")
    assert changed_parts(model, read_model(BASE)) == parts
    for part in PARTS:
        for name, tensor in wanted[part].items():
            torch.testing.assert_close(model[part][name], tensor, rtol=1e-4, atol=1e-6)
