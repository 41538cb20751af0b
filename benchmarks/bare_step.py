"""One step of a LoRA by PyTorch, Diffusers and Transformers alone: what a training cannot do without.

    python benchmarks/bare_step.py MODEL IMAGE OUTPUT

MODEL is a Diffusers folder. The LoRA is that of the attention blocks, of rank 4.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer


class LoraLinear(nn.Module):
    def __init__(self, frozen: nn.Linear, rank: int):
        super().__init__()
        self.frozen = frozen
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.up(self.down(x))


class LoraConv(LoraLinear):
    """The same for a convolution of 1x1, as SD 1.x has them around its attention blocks."""

    def __init__(self, frozen: nn.Conv2d, rank: int):
        nn.Module.__init__(self)
        self.frozen = frozen
        self.down = nn.Conv2d(frozen.in_channels, rank, 1, bias=False)
        self.up = nn.Conv2d(rank, frozen.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)


def attach(unet: nn.Module, rank: int = 4, device: str = "cpu") -> dict[str, nn.Parameter]:
    """Puts a LoRA on every linear layer and 1x1 convolution of the attention blocks; its parameters by name."""
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and ".attentions." in name:
            parent, _, last = name.rpartition(".")
            adapted = LoraLinear(module, rank) if isinstance(module, nn.Linear) else LoraConv(module, rank)
            setattr(unet.get_submodule(parent), last, adapted.to(device))
    return {name: weight for name, weight in unet.named_parameters() if name.endswith(("down.weight", "up.weight"))}


def main(model: str, image: str, output: str) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=torch.float32)
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    for part in (text_encoder, vae, unet):
        part.requires_grad_(False)
    trained = attach(unet)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-4)
    pixels = np.asarray(Image.open(image).convert("RGB").resize((64, 64)), np.float32) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None]).latent_dist.sample()
        latents *= vae.config.scaling_factor
        tokens = tokenizer("a fox", padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = text_encoder(tokens).last_hidden_state
    noise, timestep = torch.randn_like(latents), torch.randint(1000, (1,))
    predicted = unet(scheduler.add_noise(latents, noise, timestep), timestep, states).sample
    F.mse_loss(predicted, noise).backward()
    optimizer.step()
    save_file({name: weight.detach() for name, weight in trained.items()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
