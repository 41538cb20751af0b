"""Adds a LoRA file to the weights of a Stable Diffusion pipeline in memory, independently of the trainer's own code.

Reads both namings of the tensors:
  lora_unet_down_blocks_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha
  unet.down_blocks.0....to_q.lora_A.weight, .lora_B.weight
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

ENDINGS = {".lora_down.weight": ".lora_up.weight", ".lora_A.weight": ".lora_B.weight"}


def _layers(pipe: StableDiffusionPipeline) -> dict[str, torch.nn.Module]:
    """The layers by each name that a LoRA file may use for them."""
    table = {}
    for prefix, short, model in (("unet", "lora_unet_", pipe.unet), ("text_encoder", "lora_te_", pipe.text_encoder)):
        for name, module in model.named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                # some versions of transformers have the level "text_model.", others do not
                bare = name.removeprefix("text_model.")
                for spelling in {name, bare, f"text_model.{bare}"}:
                    table[short + spelling.replace(".", "_")] = module
                    table[f"{prefix}.{spelling}"] = module
    return table


@torch.no_grad()
def add_lora(pipe: StableDiffusionPipeline, path: Path, strength: float = 1.0) -> int:
    """Adds strength * alpha / rank * up @ down to each layer; returns how many layers changed."""
    tensors = load_file(str(path))
    layers = _layers(pipe)
    changed = 0
    for key, down in tensors.items():
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        if ending is None:
            continue
        name = key.removesuffix(ending)
        if name not in layers:
            raise SystemExit(
                f"error: {path} has {name}, which this model lacks\n  use the model that it was trained on"
            )
        up, rank = tensors[name + ENDINGS[ending]], down.shape[0]
        alpha = float(tensors.get(f"{name}.alpha", torch.tensor(float(rank))))
        change = strength * alpha / rank * up.float().flatten(1) @ down.float().flatten(1)
        layers[name].weight += change.reshape(layers[name].weight.shape).to(layers[name].weight.dtype)
        changed += 1
    return changed
