"""Loads the tiny model by Diffusers, draws samples, sends images through its VAE, and lays them out on a sheet."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from drawing import SIZE
from lora import add_lora
from PIL import Image

HERE = Path(__file__).resolve().parent


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The options that both measurements have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE.parent / "base", help="Diffusers folder")
    parser.add_argument("--lora", type=Path, nargs="+", default=[], metavar="FILE", help="LoRA files, one at a time")
    parser.add_argument("--strength", type=float, default=1.0, help="of the LoRA")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--scale", type=float, default=4.0, help="guidance scale")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--grid", type=Path, metavar="IMAGE.png", help="write the samples to this image")
    return parser


def load(folder: Path, device: str, lora: Path | None = None, strength: float = 1.0) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(
        str(folder), safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.text_encoder, pipe.unet, pipe.vae):
        model.float()  # the files are fp16, which is slow on a CPU
    if lora:
        add_lora(pipe, lora, strength)
    return pipe.to(device)


def generate(
    pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], steps: int, scale: float
) -> list[np.ndarray]:
    """One image for each prompt and seed, whatever the others are.  # (64, 64, 3), uint8"""
    images = []
    for i in range(0, len(prompts), 20):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[i : i + 20]]
        drawn = pipe(
            prompts[i : i + 20],
            height=SIZE,
            width=SIZE,
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=generators,
        )
        images += [np.asarray(image) for image in drawn.images]
    return images


@torch.no_grad()
def through_vae(pipe: StableDiffusionPipeline, image: np.ndarray) -> tuple[np.ndarray, float]:
    """An image encoded and decoded, and its PSNR in dB."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = pipe.vae.encode(pixels.to(pipe.device)).latent_dist.mean
    decoded = pipe.vae.decode(latents).sample.cpu().clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (pixels - decoded).square().mean()).item()
    return ((decoded[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), psnr


def sheet(images: list[np.ndarray], columns: int, scale: int = 1) -> Image.Image:
    rows = -(-len(images) // columns)
    cell = SIZE + 2
    canvas = Image.new("RGB", (columns * cell, rows * cell), "white")
    for i, image in enumerate(images):
        canvas.paste(Image.fromarray(image).resize((SIZE, SIZE)), (i % columns * cell, i // columns * cell))
    return canvas.resize((canvas.width * scale, canvas.height * scale), Image.Resampling.NEAREST)
