"""The VAE of Stable Diffusion: images to latents, sampled with a seed each, and back."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from torch import nn

from library.models.device_copies import to_device
from library.models.family import LoadSettings
from library.models.layouts.vae_loading import load_vae
from library.models.weights.module_weights import Fingerprints

logger = logging.getLogger(__name__)


class VaeCodec:
    """A loaded VAE, on its device and in its data type; implements `ImageEncoder`."""

    def __init__(self, vae: AutoencoderKL):
        self.vae = vae
        self.latent_channels: int = vae.config.latent_channels
        self.vae_scale: int = 2 ** (len(vae.config.block_out_channels) - 1)
        self._scaling_factor: float = vae.config.scaling_factor
        self._shift: float = vae.config.shift_factor or 0.0  # taken off before scaling
        self._fingerprints = Fingerprints()
        self._vae_in_float32: AutoencoderKL | None = None  # made when the VAE overflows in fp16

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> unscaled float32 latents (B, 4, H/8, W/8), image i sampled with seeds[i].

        The sample's noise is drawn on the CPU, so that it is the same on every device. All images go through the
        VAE at once, in its own data type, inside an autocast too.
        """
        weight = self.vae.encoder.conv_in.weight
        with torch.autocast(weight.device.type, enabled=False):
            posterior = self.vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
            if self._overflowed(posterior.mean):
                posterior = self._float32_vae().encode(pixels.to(weight.device)).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        noise = torch.stack([_keyed_noise(mean.shape[1:], seed) for seed in _one_each(seeds, mean)])
        return mean + torch.exp(0.5 * log_variance) * to_device(noise, mean.device)

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the VAE gives them -> latents as the U-Net takes them, of about unit variance."""
        return (latents - self._shift) * self._scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, 4, h, w) -> pixels (B, 3, 8h, 8w), roughly in [-1, 1], float32.

        The VAE computes in its own data type, inside an autocast too.
        """
        home = self.vae.device
        nn.Module.to(self.vae, latents.device)
        unscaled = latents / self._scaling_factor + self._shift
        with torch.autocast(latents.device.type, enabled=False):
            pixels = self.vae.decode(unscaled.to(self.vae.dtype)).sample
            if self._overflowed(pixels):
                pixels = self._float32_vae().decode(unscaled.float()).sample
        nn.Module.to(self.vae, home)
        return pixels.float()

    def _overflowed(self, values: torch.Tensor) -> bool:
        return values.dtype == torch.float16 and not bool(torch.isfinite(values).all())

    def _float32_vae(self) -> AutoencoderKL:
        """A float32 copy of the VAE, made when first needed, with a warning."""
        if self._vae_in_float32 is None:
            logger.warning(
                "the VAE overflows in fp16 (NaN or inf): such images are computed in float32, as with --no_half_vae"
            )
            self._vae_in_float32 = copy.deepcopy(self.vae)
            nn.Module.to(self._vae_in_float32, torch.float32)
        return self._vae_in_float32

    def vae_fingerprint(self) -> str:
        """A digest of the VAE's weights in their present precision, 16 hexadecimal digits."""
        return self._fingerprints.of(self.vae, self.vae.encoder.conv_in.weight.dtype)


def _one_each(seeds: Sequence[int], images: torch.Tensor) -> Sequence[int]:
    if len(seeds) != len(images):
        raise ValueError(f"{len(seeds)} seeds for {len(images)} images")
    return seeds


def _keyed_noise(shape: torch.Size, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def load_encoder(path: str, settings: LoadSettings, flag: str) -> VaeCodec:
    """The VAE at `path`, which the user gave with `flag`: of a model, whose other parts are not read, or one alone.

    Raises `UserError` where there is none.
    """
    vae = load_vae(path, 1.0, flag=flag)  # of the encoder alone, whose latents are not scaled
    nn.Module.to(vae, settings.device, settings.dtypes.get("vae", torch.float32))
    return VaeCodec(vae)
