"""Trains the VAE of the base model from scratch: encoder and decoder on crops, then the decoder alone on whole images.

The loss of an image is its mean absolute error, half of that of the differences between neighbouring pixels, and its
root mean squared error (which PSNR is made of); the KL divergence to N(0, 1) has weight 1e-4. While the decoder is
trained alone, noise is added to the latents, as a denoiser leaves some.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

logger = logging.getLogger("make_base")
LATENT_NOISE = 0.1  # of a latent's standard deviation
FIRST_LOG_VARIANCE = -6.0
EMA_DECAY = 0.998  # at most; a short training is averaged over its last tenth
CONFIG = {
    "block_out_channels": (32, 48, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "sample_size": 64,
}


@dataclass(frozen=True)
class VaeSteps:
    """How long each part of the training is, and what is in a step."""

    crops: int
    decoder: int
    crop_batch: int = 16
    decoder_batch: int = 8
    crop_size: int = 32
    learning_rate: float = 6e-4
    decoder_learning_rate: float = 6e-4


def read_images(folder: Path) -> torch.Tensor:
    """All images of a folder.  # (N, 3, 64, 64), uint8"""
    arrays = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def image_loss(made: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    error = made - images
    edges = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) / 2
    return error.abs().mean() + 0.5 * edges + error.square().mean((1, 2, 3)).add(1e-6).sqrt().mean()


def random_batch(images: torch.Tensor, size: int, crop: int, generator: torch.Generator) -> torch.Tensor:
    """Random images, cropped and flipped at random, -1 to 1.  # (size, 3, crop, crop)"""

    def draw(high: int) -> list[int]:
        return torch.randint(high, (size,), generator=generator).tolist()

    room = images.shape[-1] - crop + 1
    picks = zip(draw(len(images)), draw(room), draw(room), draw(2), strict=True)
    crops = [images[i, :, y : y + crop, x : x + crop].flip(-1 if flip else ()) for i, y, x, flip in picks]
    return torch.stack(crops).float() / 127.5 - 1


def ema_decay(steps: int) -> float:
    return min(EMA_DECAY, max(0.0, 1 - 10 / steps))


def optimize(
    parameters: list[nn.Parameter], losses: Iterator[torch.Tensor], steps: int, peak: float, name: str
) -> None:
    """AdamW with warm-up and cosine decay; the parameters end as their moving average."""
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    average = torch.optim.swa_utils.AveragedModel(
        nn.ParameterList(parameters), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema_decay(steps))
    )
    start, smooth = time.monotonic(), None
    for step in range(steps):
        rate = peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update_parameters(nn.ParameterList(parameters))
        smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
        if step % 100 == 99 or step == steps - 1:
            logger.info("%s: step %d of %d, loss %.4f, %.0f s", name, step + 1, steps, smooth, time.monotonic() - start)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average.module.parameters(), strict=True):
            parameter.copy_(mean)


def in_bfloat16(first: nn.Module, second: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """second(first(values)), computed in bfloat16: a third of the time less on CPUs that have it."""
    with torch.autocast("cpu", torch.bfloat16):
        return second(first(values.contiguous(memory_format=torch.channels_last))).float()


def crop_losses(
    vae: AutoencoderKL, batch: Callable[[], torch.Tensor], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    while True:
        images = batch()
        mean, log_variance = in_bfloat16(vae.encoder, vae.quant_conv, images).chunk(2, dim=1)
        latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        yield image_loss(in_bfloat16(vae.post_quant_conv, vae.decoder, latents), images) + 1e-4 * kl


def decoder_losses(
    vae: AutoencoderKL, batch: Callable[[], torch.Tensor], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    while True:
        images = batch()
        with torch.no_grad():
            latents = in_bfloat16(vae.encoder, vae.quant_conv, images).chunk(2, dim=1)[0]
        noise = LATENT_NOISE / vae.config.scaling_factor * torch.randn(latents.shape, generator=generator)
        yield image_loss(in_bfloat16(vae.post_quant_conv, vae.decoder, latents + noise), images)


@torch.no_grad()
def latent_std(vae: AutoencoderKL, images: torch.Tensor) -> float:
    parts = images[:1000].float().div(127.5).sub(1).split(50)
    return torch.cat([vae.encode(part).latent_dist.mean for part in parts]).std().item()


def random_vae() -> AutoencoderKL:
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    with torch.no_grad():  # little noise at first: latents that drown in it teach the decoder nothing
        vae.quant_conv.bias[CONFIG["latent_channels"] :] = FIRST_LOG_VARIANCE
    return vae


def train_vae(images: torch.Tensor, steps: VaeSteps, seed: int, folder: Path) -> AutoencoderKL:
    """A VAE of these images, saved to `folder` in half precision; after the crops also to `folder`-crops.

    images: (N, 3, 64, 64), uint8
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = random_vae()
    crops = crop_losses(vae, lambda: random_batch(images, steps.crop_batch, steps.crop_size, generator), generator)
    optimize(list(vae.parameters()), crops, steps.crops, steps.learning_rate, "VAE")
    vae.register_to_config(scaling_factor=1 / latent_std(vae, images))
    save(vae, folder.with_name(f"{folder.name}-crops"))
    whole = decoder_losses(vae, lambda: random_batch(images, steps.decoder_batch, 64, generator), generator)
    decoder = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    optimize(decoder, whole, steps.decoder, steps.decoder_learning_rate, "decoder")
    save(vae, folder)
    return vae


def save(vae: AutoencoderKL, folder: Path) -> None:
    vae.half().save_pretrained(folder)
    vae.float()
