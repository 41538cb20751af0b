"""Two steps of each training script on a model of full size, on the CPU: seconds and peak memory.

    python -m benchmarks.full_size [--only train_db] [--share 1.0] [--size 64] [--folder FOLDER]

The model has the geometry of Stable Diffusion 1.5 (about 1.07 billion parameters in all) and random weights; it is
written once, in fp16, and each script runs in a process of its own, loading and saving included. Needs about 10 GB of
memory and 5 GB of disk. Linux only.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.random_models import make_model
from benchmarks.training_runs import make_data, run

# what fits into some 10 GB: full AdamW would take 16 for each billion parameters that learn
RUNS = {
    "train_network": ["--network_dim", "16", "--network_alpha", "8"],
    "train_db": ["--optimizer_type", "AdaFactor", "--fused_backward_pass"],
    "fine_tune": ["--optimizer_type", "AdamW8bit", "--gradient_checkpointing"],
    "train_textual_inversion": ["--token_string", "<shs>", "--use_object_template", "--num_vectors_per_token", "4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(RUNS), help="one of the scripts")
    parser.add_argument("--share", type=float, default=1.0, help="width of the model, 1 for that of SD 1.5")
    parser.add_argument("--size", type=int, default=64, help="width and height of the image")
    parser.add_argument("--folder", type=Path, help="where to put model and results; deleted afterwards")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        num_parameters = make_model(arguments.share, [("safetensors", "float16", folder / "model.safetensors")])
        make_data(folder, arguments.size)
        print(f"{num_parameters / 1e9:.2f} billion parameters, one image of {arguments.size} x {arguments.size}")
        print(f"{'script':24} {'seconds, 2 steps and a save':>28} {'peak loading':>13} {'peak training':>14}   flags")
        for script in [arguments.only] if arguments.only else RUNS:
            found = run(
                script,
                [*RUNS[script], "--save_precision", "fp16"],
                model=folder / "model.safetensors",
                data=folder,
                output=folder / script,
                size=arguments.size,
            )
            print(
                f"{script:24} {found['seconds']:28.1f} {found['loading_peak'] / 2**30:10.2f} GB"
                f" {found['loop_peak'] / 2**30:11.2f} GB   {' '.join(RUNS[script])}",
                flush=True,
            )


if __name__ == "__main__":
    main()
