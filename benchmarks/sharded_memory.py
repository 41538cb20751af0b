"""Peak memory in each of two processes that train a whole model, as ratios to processes that hold all of it.

    OMP_NUM_THREADS=1 python -m benchmarks.sharded_memory [--share 0.25] [--size 64]

The model has the geometry of Stable Diffusion 1.5, `--share` of its width, and random weights; U-Net and text encoder
learn by AdamW in float32, with gradient checkpointing. Each way runs two steps on the CPU; the peak is that of the loop
in the first process (what is resident beyond the libraries), its last save left out. Linux only. On a GPU kernels,
allocator and the buffers of messages are others: the ratios say where memory goes, not how much a card needs.
`kept` and `freed`: gathered weights between forward and backward pass (`--zero_stage 2` and 3).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.random_models import make_model
from benchmarks.training_runs import make_data, run

# title: flags of the script, variables that `accelerate launch` would set
WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "each holds all": ([], {}),
    "blocks, kept": (["--deepspeed", "--zero_stage", "2"], {}),
    "blocks, freed": (["--deepspeed", "--zero_stage", "3"], {}),
    "blocks, freed, full_bf16": (
        ["--deepspeed", "--zero_stage", "3", "--mixed_precision", "bf16", "--full_bf16"],
        {},
    ),
    "one unit": ([], {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.25, help="width of the model, 1 for that of SD 1.5")
    parser.add_argument("--size", type=int, default=64, help="width and height of the images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_parameters = make_model(arguments.share, [("safetensors", "float16", folder / "model.safetensors")])
        make_data(folder, arguments.size, 2)
        print(f"{num_parameters / 1e6:.0f} M parameters, two processes")
        print(f"{'way':30} {'peak':>8} {'of all':>9} {'seconds a step':>15}")
        first = None
        for title, (flags, variables) in WAYS.items():
            found = run(
                "train_db",
                [*flags, "--train_batch_size", "1", "--save_precision", "fp16", "--gradient_checkpointing"],
                model=folder / "model.safetensors",
                data=folder,
                output=folder / title.replace(" ", "_"),
                size=arguments.size,
                num_processes=2,
                variables={"ACCELERATE_USE_CPU": "true", **variables},
            )
            first = first or found["steps_peak"]
            share = found["steps_peak"] / first
            megabytes, seconds = found["steps_peak"] / 2**20, found["seconds"] / 2
            print(f"{title:30} {megabytes:5.0f} MB {share:9.2f} {seconds:15.1f}", flush=True)


if __name__ == "__main__":
    main()
