"""What inpainting models take beside noisy latents: a mask, and the latents of the image without what it covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from library.models.device_copies import to_device


@dataclass(frozen=True)
class Inpainting:
    """Of a batch of images. `mask`: (B, 1, h, w), 1 where the image is to be drawn. `masked_latents`: (B, C, h, w),
    scaled, of the images with grey (0 in [-1, 1]) in place of what is to be drawn.
    """

    mask: torch.Tensor
    masked_latents: torch.Tensor

    def joined(self, latents: torch.Tensor) -> torch.Tensor:
        """Noisy latents (B, C, h, w) -> the U-Net's input (B, 2 C + 1, h, w): noisy | mask | masked."""
        parts = (self.mask, self.masked_latents)
        return torch.cat([latents, *(to_device(part, latents.device, latents.dtype) for part in parts)], dim=1)

    def repeated(self, count: int) -> Inpainting:
        """For as many copies of the batch."""
        return Inpainting(self.mask.repeat(count, 1, 1, 1), self.masked_latents.repeat(count, 1, 1, 1))


def widen_first_layer(unet: Any, latent_channels: int) -> None:
    """Makes an inpainting U-Net of one for text to image, by zero weights: it predicts the same until it is trained."""
    old = unet.conv_in
    num_inputs = 2 * latent_channels + 1
    new: Any = nn.Conv2d(
        num_inputs, old.out_channels, old.kernel_size, padding=old.padding, device=old.weight.device,
        dtype=old.weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :latent_channels] = old.weight
        new.bias.copy_(old.bias)
    unet.conv_in = new.requires_grad_(old.weight.requires_grad)
    unet.register_to_config(in_channels=num_inputs)
