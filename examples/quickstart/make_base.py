"""Makes the quickstart's base model: draws its images, trains a VAE, then U-Net and text encoder by fine_tune.py.

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python examples/quickstart/make_base.py --emoji package --output output/base

The defaults are meant for two hours on two CPU cores. The same options, seed and number of threads give the same model,
on the same machine: a Diffusers folder in half precision, OUTPUT/model. evaluation/evaluate.py measures it.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path

from base_images import draw_images
from base_model import random_model
from base_vae import VaeSteps, ema_decay, read_images, train_vae

logger = logging.getLogger("make_base")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOKENIZER = HERE / "base" / "tokenizer"


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--emoji", type=Path, required=True, metavar="FOLDER", help="the unpacked npm package emoji-datasource-google"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new folder for what is made")
    parser.add_argument("--vae", type=Path, metavar="FOLDER", help="VAE made before: train none")
    parser.add_argument("--images", type=int, default=20000, help="number of training images (default: %(default)s)")
    parser.add_argument("--vae_steps", type=int, default=8000, help="of the VAE, on crops (default: %(default)s)")
    parser.add_argument("--decoder_steps", type=int, default=3000, help="of the decoder alone (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=9500, help="of U-Net and text encoder (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="of these steps (default: %(default)s)")
    parser.add_argument("--learning_rate", default="1.2e-3", help="of these steps (default: %(default)s)")
    parser.add_argument("--save_every", type=int, metavar="STEPS", help="save the model every so many of these steps")
    parser.add_argument("--seed", type=int, default=42)
    return parser


def fine_tune(model: Path, metadata: Path, options: argparse.Namespace) -> int:
    """Trains U-Net and text encoder of `model` on the images of `metadata`, into OUTPUT/model; returns its status."""
    arguments = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": metadata.parent,
        "in_json": metadata,
        "resolution": 64,
        "train_batch_size": options.batch_size,
        "max_data_loader_n_workers": 0,
        "caption_dropout_rate": 0.1,
        "optimizer_type": "AdamW",
        "learning_rate": options.learning_rate,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 100,
        "max_train_steps": options.steps,
        "min_snr_gamma": 5,
        "ema_decay": ema_decay(options.steps),
        "save_model_as": "diffusers_safetensors",
        "save_precision": "fp16",
        "output_dir": options.output,
        "output_name": "model",
        "logging_dir": options.output / "logs",
        "seed": options.seed,
        **({"save_every_n_steps": options.save_every} if options.save_every else {}),
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    switches = ["--cache_latents", "--train_text_encoder", "--ema", "--no_metadata"]  # captions would be 0.8 MB of it
    command = [sys.executable, ROOT / "fine_tune.py", *flags, *switches]
    return subprocess.run(command).returncode


def check(chosen: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    for name in ("emoji.json", "img/google/64"):
        if not (chosen.emoji / name).exists():
            parser.error(f"--emoji {chosen.emoji}: no {name} there; name the folder 'package' of the unpacked package")
    if chosen.output.exists() and any(chosen.output.iterdir()):
        parser.error(f"--output {chosen.output} is not empty; name a new folder")
    if chosen.vae and not (chosen.vae / "config.json").is_file():
        parser.error(f"--vae {chosen.vae}: no config.json there; name the folder of a VAE, such as vae/ in a model")


def main() -> int:
    parser = options()
    chosen = parser.parse_args()
    check(chosen, parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.info("drawing %d images", chosen.images)
    metadata = draw_images(chosen.output / "images", chosen.emoji, chosen.images, chosen.seed, TOKENIZER / "vocab.json")
    if not chosen.vae:
        steps = VaeSteps(chosen.vae_steps, chosen.decoder_steps)
        train_vae(read_images(metadata.parent), steps, chosen.seed, chosen.output / "vae")
    model = random_model(chosen.output / "initial", chosen.vae or chosen.output / "vae", TOKENIZER, chosen.seed)
    return fine_tune(model, metadata, chosen)


if __name__ == "__main__":
    sys.exit(main())
