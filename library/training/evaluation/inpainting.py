"""What an inpainting model is given of the image of a prompt: mask and masked latents."""

from __future__ import annotations

import numpy as np
import torch

from library.data.config.options import MASK_SHAPES
from library.data.images.decoding import decode_image, to_pixels, transform_image
from library.data.images.inpaint_masks import MaskShares, light_parts, masked_image
from library.data.randomness import derive_seed
from library.data.records import Placement
from library.models.device_copies import to_device
from library.models.family import ModelFamily
from library.models.inpainting import Inpainting
from library.training.evaluation.prompts import SamplePrompt

_SHARES = MaskShares(dict.fromkeys(MASK_SHAPES, 1.0))  # never the full image, of which nothing would be left to see


def inpainting_of(family: ModelFamily, prompt: SamplePrompt, seed: int) -> Inpainting | None:
    """The image without what the mask covers, scaled to the sample's size, on the model's device.

    None for prompts without an image, of which everything is drawn, and for other models. Raises `UserError` for files
    that cannot be decoded.
    """
    if prompt.image is None or not family.takes_masks:
        return None
    device = next(family.unet.parameters()).device
    image = masked_image(to_pixels(_scaled(prompt.image, prompt)), _mask_of(prompt, seed), family.vae_scale)
    latents = family.encode_images(torch.from_numpy(image.pixels)[None], [derive_seed("sample image", seed)])
    mask = torch.from_numpy(image.mask)[None, None]
    return Inpainting(to_device(mask, device), family.scale_latents(latents).to(device))


def _mask_of(prompt: SamplePrompt, seed: int) -> np.ndarray:
    if prompt.mask is None:
        return _SHARES.draw((prompt.width, prompt.height), derive_seed("inpainting mask", seed))
    return light_parts(_scaled(prompt.mask, prompt)[:, :, 0])


def _scaled(path: str, prompt: SamplePrompt) -> np.ndarray:
    size = prompt.width, prompt.height
    return transform_image(decode_image(path), Placement(size, size, (0, 0)), flipped=False)
