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

FORMS = {
    "safetensors, float32": ("safetensors", "float32"),
    "safetensors, float16": ("safetensors", "float16"),
    "ckpt, float32": ("ckpt", "float32"),
    "ckpt, float16": ("ckpt", "float16"),
    "folder, float32": ("diffusers_safetensors", "float32"),
    "folder, float16": ("diffusers_safetensors", "float16"),
}
TARGET = 1.3


def make_model(share: float, folder: Path) -> None:
    """Writes the model in every form."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from library.models.model_parts import ModelParts
    from library.models.model_saving import FORMATS, SavedModel, save_model
    from library.models.text_encoder import build_text_encoder
    from library.models.tokenizer import load_tokenizer

    def width(full: int) -> int:
        return max(64, round(full * share / 64) * 64)

    text_width = width(768)
    unet = UNet2DConditionModel(
        block_out_channels=[width(channels) for channels in (320, 640, 1280, 1280)],
        cross_attention_dim=text_width,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=[width(channels) for channels in (128, 256, 512, 512)],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
    )
    text = build_text_encoder(
        {
            "vocab_size": 49408,
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": 12,
            "num_attention_heads": text_width // 64,
        }
    )
    parts = ModelParts(unet, vae, text)
    tokenizer = load_tokenizer(None, pads_with_end=True)
    for title, (form, precision) in FORMS.items():
        path = folder / (title.replace(", ", "-").replace(" ", "") + FORMATS[form].ending)
        scheduler = {"prediction_type": "epsilon"}
        save_model(path, form, SavedModel(parts, tokenizer, False, scheduler, getattr(torch, precision)))


def measure(path: str) -> None:
    """Loads the model in this process and prints what it took."""
    from library.models import stable_diffusion  # noqa: F401 - what is imported is not counted
    from library.models.options import ModelOptions
    from library.models.registry import load_family

    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    start = time.perf_counter()
    family = load_family(ModelOptions(path))
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM") - before
    modules = (family.unet, family.vae, *family.text_encoders)
    size = sum(parameter.nbytes for module in modules for parameter in module.parameters())
    print(json.dumps({"seconds": seconds, "peak": peak, "size": size}))


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="width of the model, 1 for that of SD 1.5")
    parser.add_argument("--folder", type=Path, help="where to put the models, some 20 GB; deleted afterwards")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        return measure(arguments.measure)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_model(arguments.share, Path(folder))
        print(f"{'form':24} {'in memory':>10} {'seconds':>8} {'peak':>10} {'peak / size':>12}   (target {TARGET})")
        for title in FORMS:
            (path,) = Path(folder).glob(title.replace(", ", "-").replace(" ", "") + "*")
            command = [sys.executable, __file__, "--measure", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            result = json.loads(done.stdout.splitlines()[-1])
            size, peak = result["size"], result["peak"]
            print(
                f"{title:24} {size / 2**20:7.0f} MB {result['seconds']:8.1f} {peak / 2**20:7.0f} MB {peak / size:12.2f}"
            )


if __name__ == "__main__":
    main()
