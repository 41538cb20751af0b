"""How much of the VAE's own speed is left when latents are cached: images decoded, encoded and stored.

    python -m benchmarks.caching [--num_images 12] [--size 256] [--batch_size 1] [--threads N]

Makes images like photographs and a VAE of random weights, and takes in turns, in one run: the VAE alone on pixels
that are in memory already; caching to memory; caching to disk; and, to compare, one stage after the other to disk.
The best of the rounds counts, since a busy machine only ever takes time away. On a CPU the decoders take their time
from the VAE, so that the share of decoding in all work is the least that can be lost; on a GPU they do not. What the
CPU computed is counted beside the time on the clock: where other programs run, it says more.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

from benchmarks.figures import Figure
from benchmarks.turns import best_of, make_images
from library.data.batches.plan import TrainingData
from library.data.caches.latent_cache import latent_seed, write_latents
from library.data.caches.pipeline import chunks_of
from library.data.config.options import CachingOptions, DatasetOptions
from library.data.images.decoding import load_image
from library.data.load_data import load_training_data
from library.data.records import CachedLatents
from library.models.family import LoadSettings, ModelFamily
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.training.inputs.latents import LatentProvider
from tests.tiny_models import TinyModel, make_tiny, write_folder

_CHANNELS = (32, 64, 64, 64)  # a quarter of the real VAE's width: slow enough beside decoding, quick enough to wait for

_TARGET = 0.95  # of the VAE's speed
_IMAGES_OF_FIGURES = 8


def measure_caching(
    num_images: int = 12, *, size: int = 256, batch_size: int = 1, num_rounds: int = 3, num_decoders: int = 2
) -> dict[str, float]:
    """Images a second of the VAE alone (`vae_only`) and the others as shares of it.

    Shares: `memory`, `disk` (the pipeline) and `one_after_the_other`, and the same with `_cpu` of the CPU's time in
    all threads; `decoding`: seconds to decode an image as a share of those to encode it. `num_images`: images of
    `size` x `size`, half JPEG and half PNG.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", num_images, size)
        accelerator = Accelerator()
        family = _load_family(folder / "model", accelerator.device)
        data = _load_data(folder, size)
        chunks = chunks_of(data.latent_keys(), batch_size)
        pixels = [torch.stack([torch.from_numpy(load_image(key).pixels) for key in chunk]) for chunk in chunks]

        def encode_alone() -> None:
            for chunk, each in zip(chunks, pixels, strict=True):
                family.encode_images(each.to(accelerator.device), [latent_seed(key) for key in chunk]).cpu()

        def cache(**where: bool) -> None:
            options = CachingOptions(vae_batch_size=batch_size, max_data_loader_n_workers=num_decoders, **where)
            LatentProvider(family, options, accelerator).fill_caches(data)

        def decode() -> None:
            for key in data.latent_keys():
                load_image(key)

        seconds = best_of({
            "vae_only": encode_alone,
            "memory": lambda: cache(cache_latents=True),
            "disk": lambda: cache(cache_latents_to_disk=True),
            "one_after_the_other": lambda: _one_after_the_other(family, chunks, accelerator.device),
            "decoding": decode,
        }, num_rounds, lambda: _remove_caches(folder / "images"))  # fmt: skip
    alone, alone_cpu = seconds.pop("vae_only")
    decoding, _ = seconds.pop("decoding")
    shares = {name: alone / clock for name, (clock, _) in seconds.items()}
    shares |= {f"{name}_cpu": alone_cpu / cpu for name, (_, cpu) in seconds.items()}
    return {"vae_only": num_images / alone, **shares, "decoding": decoding / alone}


def figures(num_rounds: int) -> list[Figure]:
    """Shares of the VAE's speed by CPU time, in each round: on the clock they differ more than that between rounds."""
    rounds = [measure_caching(_IMAGES_OF_FIGURES, num_rounds=1) for _ in range(num_rounds)]
    shown = {
        "caching to memory": ("memory_cpu", _TARGET),
        "caching to disk": ("disk_cpu", _TARGET),
        "one stage after the other": ("one_after_the_other_cpu", None),
        "share of the VAE's time that decoding takes": ("decoding", None),
    }
    return [
        Figure(name, tuple(each[key] for each in rounds), target=target, is_least=True)
        for name, (key, target) in shown.items()
    ]


def _load_data(folder: Path, size: int) -> TrainingData:
    config = folder / "data.toml"
    images = (folder / "images").as_posix()
    config.write_text(
        f'[[datasets]]\nresolution = {size}\n[[datasets.subsets]]\nimage_dir = "{images}"\nclass_tokens = "x"\n',
        encoding="utf-8",
    )
    return load_training_data(DatasetOptions(dataset_config=str(config)))


def _load_family(folder: Path, device: torch.device) -> ModelFamily:
    tiny = make_tiny(is_v2=False)
    vae = AutoencoderKL(
        block_out_channels=_CHANNELS,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    write_folder(TinyModel(tiny.is_v2, tiny.unet, vae, tiny.text_encoder), folder)
    return load_family(ModelOptions(pretrained_model_name_or_path=str(folder)), settings=LoadSettings(device))


def _one_after_the_other(family: ModelFamily, chunks: list, device: torch.device) -> None:
    fingerprint = family.vae_fingerprint()
    for chunk in chunks:
        pixels = torch.stack([torch.from_numpy(load_image(key).pixels) for key in chunk])
        latents = family.encode_images(pixels.to(device), [latent_seed(key) for key in chunk]).cpu().numpy()
        for key, each in zip(chunk, latents, strict=True):
            write_latents({key: CachedLatents(each)}, fingerprint)


def _remove_caches(folder: Path) -> None:
    for path in folder.glob("*_sd.npz"):
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=12)
    parser.add_argument("--size", type=int, default=256, help="width and height of the images")
    parser.add_argument("--batch_size", type=int, default=1, help="--vae_batch_size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decoders", type=int, default=2, help="threads that decode, at most one for each core")
    parser.add_argument("--threads", type=int, help="threads of the VAE on a CPU; else as PyTorch chooses")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    result = measure_caching(
        args.num_images,
        size=args.size,
        batch_size=args.batch_size,
        num_rounds=args.rounds,
        num_decoders=args.decoders,
    )
    print(f"VAE alone: {result['vae_only']:.2f} images/s of {args.size} x {args.size}, batches of {args.batch_size}")
    print(f"decoding takes {result['decoding']:.1%} of the VAE's time")
    for name in ("memory", "disk", "one_after_the_other"):
        share, share_cpu = result[name], result[f"{name}_cpu"]
        print(f"{name.replace('_', ' ')}: {share:.1%} of the VAE's speed ({share_cpu:.1%} by CPU time)")


if __name__ == "__main__":
    main()
