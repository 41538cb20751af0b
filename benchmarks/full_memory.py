"""Peak memory of training a whole model (train_db.py, U-Net and text encoder), as ratios to AdamW in float32.

    python -m benchmarks.full_memory [--share 0.25] [--size 256] [--batch_size 2]

The model has the geometry of Stable Diffusion 1.5, `--share` of its width, and random weights. Each combination runs
two steps in a process of its own, on the CPU; the peak is that of the loop (what is resident beyond the libraries), not
that of loading. Linux only. On a GPU kernels and allocator are others: the ratios say where memory goes, not how much a
card needs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.random_models import make_model
from benchmarks.training_runs import make_data, run

_BF16 = ["--mixed_precision", "bf16"]
_FULL_BF16 = [*_BF16, "--full_bf16"]
_ADAFACTOR = ["--optimizer_type", "AdaFactor"]
COMBINATIONS = {
    "AdamW": [],
    "+ gradient_checkpointing": ["--gradient_checkpointing"],
    "+ mixed_precision bf16": _BF16,
    "+ full_bf16": _FULL_BF16,
    "+ fused_backward_pass": ["--fused_backward_pass"],
    "AdamW8bit": ["--optimizer_type", "AdamW8bit"],
    "AdaFactor": _ADAFACTOR,
    "+ fused_backward_pass ": [*_ADAFACTOR, "--fused_backward_pass"],
    "+ full_bf16, checkpointing": [
        *_ADAFACTOR, "--fused_backward_pass", *_FULL_BF16, "--gradient_checkpointing"
    ],
    "AdamW, text encoder frozen": ["--stop_text_encoder_training", "-1"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.25, help="width of the model, 1 for that of SD 1.5")
    parser.add_argument("--size", type=int, default=256, help="width and height of the images")
    parser.add_argument("--batch_size", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_parameters = make_model(arguments.share, [("safetensors", "float16", folder / "model.safetensors")])
        make_data(folder, arguments.size, arguments.batch_size)
        print(f"{num_parameters / 1e6:.0f} M parameters, images of {arguments.size}, {arguments.batch_size} at once")
        print(f"{'combination':30} {'peak':>8} {'of AdamW':>9} {'seconds a step':>15}")
        first = None
        for title, flags in COMBINATIONS.items():
            found = run(
                "train_db",
                [*flags, "--train_batch_size", str(arguments.batch_size), "--save_precision", "fp16"],
                model=folder / "model.safetensors",
                data=folder,
                output=folder / "out",
                size=arguments.size,
            )
            first = first or found["loop_peak"]
            share = found["loop_peak"] / first
            megabytes, seconds = found["loop_peak"] / 2**20, found["seconds"] / 2
            print(f"{title:30} {megabytes:5.0f} MB {share:9.2f} {seconds:15.1f}", flush=True)


if __name__ == "__main__":
    main()
