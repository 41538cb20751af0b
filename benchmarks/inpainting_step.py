"""A step of a LoRA on an inpainting model beside one on the model that it was made of, with cached latents.

    python -m benchmarks.inpainting_step [--model tiny] [--rounds 20]

Masks that are drawn (the masked image is read and encoded in the step), and masks of the images' own (it is cached).
The three take turns in one process of one thread; a step is batch, loss and backward pass. The least milliseconds of
the CPU are shown. The models: the quickstart's at 64 pixels ("tiny"), and one of SD 1.5's geometry with a third of its
width at 256 ("100m").
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image

import train_network
from benchmarks.training_runs import ROOT, make_data
from benchmarks.turns import best_of
from library.cli.parser import parse_options
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.load_data import load_training_data
from library.data.records import StepCounter
from library.methods.options import NetworkOptions
from library.models.family import LoadSettings
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.training.inputs.objective import make_inputs

TINY = ROOT / "examples" / "quickstart" / "base"
BATCH, SIZES = 2, {"tiny": 64, "100m": 256}


def make_step(model: Path, data: Path, size: int, *, masks: str = "") -> Callable[[], None]:
    """One micro-batch of a LoRA, forward and backward. `masks`: "drawn", or "given" by mask images."""
    flags = ["--conditioning_data_dir", str(data / "masks")] if masks == "given" else []
    argv = [
        "--pretrained_model_name_or_path", str(model), "--train_data_dir", str(data / "train"), *flags,
        "--resolution", str(size), "--train_batch_size", str(BATCH), "--output_dir", str(data / "out"),
        "--cache_latents", "--cache_text_encoder_outputs", "--network_train_unet_only",
        "--max_data_loader_n_workers", "0",
    ]  # fmt: skip
    options = parse_options(argv, train_network.OPTION_GROUPS, program="train_network.py", description="")
    images = load_training_data(options[DatasetOptions], options[CachingOptions])
    method = train_network.make_method(options)
    family = load_family(options[ModelOptions], settings=LoadSettings(widens_for_inpainting=bool(masks)))
    method.attach(family, seed=1, default_learning_rate=1e-4, checkpointing=False)
    assert options[NetworkOptions].network_train_unet_only
    accelerator = Accelerator(cpu=True)
    inputs = make_inputs(options, images, method, family, accelerator)
    loader = inputs.loader_of(images, 1, StepCounter(1, 1, 1))
    micro_batch = images.batches_of_epoch(1, 0)[0]

    def step() -> None:
        (batch,) = loader.batches([micro_batch])
        inputs.objective.training_loss(batch, 1).backward()

    return step


def measure(name: str, model: Path, num_rounds: int, folder: Path) -> None:
    make_data(folder, SIZES[name], count=BATCH)
    (folder / "masks" / "1_x").mkdir(parents=True)
    for number in range(BATCH):
        mask = Image.new("L", (SIZES[name],) * 2)
        mask.paste(255, (0, 0, SIZES[name] // 2, SIZES[name]))
        mask.save(folder / "masks" / "1_x" / f"{number}.png")
    works = {
        "plain": make_step(model, folder, SIZES[name]),
        "drawn masks": make_step(model, folder, SIZES[name], masks="drawn"),
        "given masks, cached": make_step(model, folder, SIZES[name], masks="given"),
    }
    least = {work: cpu for work, (_, cpu) in best_of(works, num_rounds, lambda: None).items()}
    for work, seconds in least.items():
        print(f"{work:22}{name:>8}{1000 * seconds:12.1f}{seconds / least['plain']:8.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SIZES), help="one model")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':22}{'model':>8}{'CPU, ms':>12}{'ratio':>8}")
    for name in [options.model] if options.model else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            model = TINY
            if name != "tiny":
                from benchmarks.random_models import make_model

                model = Path(folder) / "model"
                make_model(1 / 3, [("diffusers_safetensors", "float32", model)])
            measure(name, model, options.rounds, Path(folder) / "data")


if __name__ == "__main__":
    main()
