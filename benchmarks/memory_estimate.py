"""The estimate of `--dry_run` against the measured peak of the same run, for each training script, on the CPU.

    python -m benchmarks.memory_estimate [--share 0.5] [--size 256] [--batch_size 2] [--only train_db]

The model has the geometry of Stable Diffusion 1.5, `--share` of its width, and random weights. Measured is what two
steps hold at their peak beyond the libraries. Linux only. On a GPU kernels and allocator are others.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.random_models import make_model
from benchmarks.training_runs import ROOT, command_line, make_data, run

RUNS = {
    "train_network": [
        ["--network_dim", "16", "--cache_latents"],
        ["--network_dim", "16", "--cache_latents", "--gradient_checkpointing"],
        ["--network_dim", "16", "--mixed_precision", "bf16"],
    ],
    "train_db": [[], ["--optimizer_type", "AdaFactor", "--fused_backward_pass"]],
    "fine_tune": [["--optimizer_type", "AdamW8bit", "--gradient_checkpointing"]],
    "train_textual_inversion": [["--token_string", "<shs>", "--use_object_template"]],
}
_LINE = re.compile(r"memory: about ([\d.]+) (GiB|MiB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(RUNS), help="one of the scripts")
    parser.add_argument("--share", type=float, default=0.5, help="width of the model, 1 for that of SD 1.5")
    parser.add_argument("--size", type=int, default=256, help="width and height of the images")
    parser.add_argument("--batch_size", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(arguments.share, [("safetensors", "float16", folder / "model.safetensors")])
        make_data(folder, arguments.size, arguments.batch_size)
        print(f"{'script':24} {'estimated':>10} {'measured':>10} {'ratio':>6}   flags")
        for script in [arguments.only] if arguments.only else RUNS:
            for flags in RUNS[script]:
                given = [*flags, "--train_batch_size", str(arguments.batch_size), "--overwrite"]
                where = {"model": folder / "model.safetensors", "data": folder, "output": folder / "out"}
                estimated = _estimate(command_line(script, [*given, "--dry_run"], size=arguments.size, **where))
                measured = run(script, given, size=arguments.size, **where)["steps_peak"]
                print(
                    f"{script:24} {estimated / 2**30:6.2f} GiB {measured / 2**30:6.2f} GiB"
                    f" {estimated / measured:6.2f}   {' '.join(flags)}",
                    flush=True,
                )


def _estimate(argv: list[str]) -> float:
    """Bytes, as the script says."""
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=ROOT)
    found = _LINE.search(done.stderr)
    if found is None:
        sys.exit(done.stderr[-3000:])
    return float(found[1]) * {"GiB": 2**30, "MiB": 2**20}[found[2]]


if __name__ == "__main__":
    main()
