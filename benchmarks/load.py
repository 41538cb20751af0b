"""Seconds and peak memory of loading a model, against the model's own size, for each form that it can come in.

    python benchmarks/load.py [--share 1.0] [--folder FOLDER]

The model has the geometry of Stable Diffusion 1.5 and random weights; `--share 0.25` makes it narrower. Memory is
what the process holds beyond what it held before loading (resident, pages of mapped files included), so Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.process_memory import forget_peak, peak, resident  # noqa: E402
from benchmarks.random_models import make_model  # noqa: E402

FORMS = {
    "safetensors, float32": ("safetensors", "float32"),
    "safetensors, float16": ("safetensors", "float16"),
    "ckpt, float32": ("ckpt", "float32"),
    "ckpt, float16": ("ckpt", "float16"),
    "folder, float32": ("diffusers_safetensors", "float32"),
    "folder, float16": ("diffusers_safetensors", "float16"),
}
TARGET = 1.3


def write_models(share: float, folder: Path) -> None:
    """Writes the model in every form."""
    from library.models.layouts.formats import FORMATS

    def path(title: str, form: str) -> Path:
        return folder / (title.replace(", ", "-").replace(" ", "") + FORMATS[form].ending)

    make_model(share, [(form, precision, path(title, form)) for title, (form, precision) in FORMS.items()])


def measure(path: str) -> None:
    """Loads the model in this process and prints what it took."""
    from library.models.options import ModelOptions
    from library.models.registry import load_family
    from library.models.stable_diffusion import model  # noqa: F401 - what is imported is not counted

    before = resident()
    forget_peak()
    start = time.perf_counter()
    family = load_family(ModelOptions(path))
    seconds = time.perf_counter() - start
    most = peak() - before
    modules = (family.unet, family.vae, *family.text_encoders)
    size = sum(parameter.nbytes for module in modules for parameter in module.parameters())
    print(json.dumps({"seconds": seconds, "peak": most, "size": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="width of the model, 1 for that of SD 1.5")
    parser.add_argument("--folder", type=Path, help="where to put the models, some 20 GB; deleted afterwards")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        return measure(arguments.measure)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_models(arguments.share, Path(folder))
        print(f"{'form':24} {'in memory':>10} {'seconds':>8} {'peak':>10} {'peak / size':>12}   (target {TARGET})")
        for title in FORMS:
            (path,) = Path(folder).glob(title.replace(", ", "-").replace(" ", "") + "*")
            command = [sys.executable, __file__, "--measure", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            result = json.loads(done.stdout.splitlines()[-1])
            size, most = result["size"], result["peak"]
            print(
                f"{title:24} {size / 2**20:7.0f} MB {result['seconds']:8.1f} {most / 2**20:7.0f} MB {most / size:12.2f}"
            )


if __name__ == "__main__":
    main()
