"""Seconds and peak memory of loading a model, against the model's own size, for each form that it can come in.

    python benchmarks/load.py [--geometry sd15|sdxl] [--kept float32|float16] [--share 1.0] [--folder FOLDER]

The model has the geometry of Stable Diffusion 1.5 or XL and random weights; `--share 0.25` makes it narrower. `--kept`:
the data type in which all parts are kept. Memory is what the process holds beyond what it held before loading
(resident, pages of mapped files included), so Linux only. The target for models kept in half precision is 1.15.
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
TARGETS = {"float32": 1.3, "float16": 1.15, "bfloat16": 1.15}
PARTS = ("unet", "vae", "text_encoder")


def write_models(geometry: str, share: float, forms: list[str], folder: Path) -> None:
    """Writes the model in every form."""
    from library.models.layouts.formats import FORMATS

    def path(title: str, form: str) -> Path:
        return folder / (title.replace(", ", "-").replace(" ", "") + FORMATS[form].ending)

    files = [(FORMS[title][0], FORMS[title][1], path(title, FORMS[title][0])) for title in forms]
    make_model(share, files, geometry)


def measure(path: str, kept: str) -> None:
    """Reads the parts of the model in this process and prints what it took."""
    import torch

    from library.models.layouts.diffusers_folder import DiffusersFolder
    from library.models.options import ModelOptions
    from library.models.reading.loading import load_model
    from library.models.registry import detect_model
    from library.models.weights.checkpoint_files import open_weights

    found = detect_model(ModelOptions(path))
    assert found is not None
    before = resident()
    forget_peak()
    start = time.perf_counter()
    source = DiffusersFolder(Path(path)) if Path(path).is_dir() else open_weights(Path(path))
    dtypes = dict.fromkeys(PARTS, getattr(torch, kept))
    parts = load_model(source, found.detected.layout, ModelOptions(), dtypes).parts
    seconds = time.perf_counter() - start
    most = peak() - before
    size = sum(parameter.nbytes for module in parts.modules.values() for parameter in module.parameters())
    print(json.dumps({"seconds": seconds, "peak": most, "size": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--kept", choices=tuple(TARGETS), default="float32", help="data type of the parts in memory")
    parser.add_argument("--only", help="forms whose title has this in it: float16")
    parser.add_argument("--share", type=float, default=1.0, help="width of the model, 1 for the full one")
    parser.add_argument("--folder", type=Path, help="where to put the models, some 20 GB; deleted afterwards")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        return measure(arguments.measure, arguments.kept)
    forms = [title for title in FORMS if (arguments.only or "") in title]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_models(arguments.geometry, arguments.share, forms, Path(folder))
        target = f"(target {TARGETS[arguments.kept]})"
        print(f"{'form':24} {'in memory':>10} {'seconds':>8} {'peak':>10} {'peak / size':>12}   {target}")
        for title in forms:
            (path,) = Path(folder).glob(title.replace(", ", "-").replace(" ", "") + "*")
            command = [sys.executable, __file__, "--measure", str(path), "--kept", arguments.kept]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            result = json.loads(done.stdout.splitlines()[-1])
            size, most = result["size"], result["peak"]
            print(
                f"{title:24} {size / 2**20:7.0f} MB {result['seconds']:8.1f} {most / 2**20:7.0f} MB {most / size:12.2f}"
            )


if __name__ == "__main__":
    main()
