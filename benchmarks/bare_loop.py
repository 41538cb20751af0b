"""Training steps of each method by PyTorch, Diffusers and Transformers alone, on data that is ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.bare_step import attach


def make_bare_step(
    method: str, model: Path, batch: int, size: int, device: str = "cpu", autocast: torch.dtype | None = None
) -> Callable[[], None]:
    """A function that makes one step on random latents of images of `size`, `batch` of them.

    `autocast`: of mixed precision; None: float32.
    """
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=torch.float32).to(device)
    text_encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder", dtype=torch.float32).to(device)
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    text_encoder.requires_grad_(False)
    tokens = tokenizer(["an image"] * batch, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(
        device
    )
    encode: Callable[[], torch.Tensor]
    if method == "textual_inversion":
        unet.requires_grad_(False)
        vector = _trained_vector(text_encoder, tokens[0, 1].item())
        trained, encode = [vector], lambda: text_encoder(tokens).last_hidden_state
    else:
        states = text_encoder(tokens).last_hidden_state
        encode = lambda: states  # noqa: E731
        if method == "lora":
            unet.requires_grad_(False)
            trained = list(attach(unet, rank=4, device=device).values())
        else:
            unet.requires_grad_(True)
            trained = list(unet.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    latents = torch.randn(batch, 4, size // 8, size // 8, device=device)

    def step() -> None:
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (batch,), device=device)
        with torch.autocast(device, autocast, enabled=autocast is not None):
            predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, encode()).sample
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()

    return step


def _trained_vector(text_encoder: Any, token: int) -> nn.Parameter:
    """A parameter that stands for one row of the token table."""
    table = text_encoder.get_input_embeddings()
    vector = nn.Parameter(table.weight[token].detach().clone())

    def replace(_: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return torch.where((args[0] == token).unsqueeze(-1), vector, output)

    table.register_forward_hook(replace)
    return vector
