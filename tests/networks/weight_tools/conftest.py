"""LoRA files for the tools, small and with known contents."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.script_runs import run_script  # noqa: F401 - the fixture `run`

TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
METADATA = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "4",
    "ss_network_alpha": "2.0",
    "ss_base_model_version": "sd_v1",
    "ss_tag_frequency": '{"dog": {"shs": 3}}',
    "sshs_model_hash": "stale",
}


def lora_tensors(seed: int, rank: int = 4, alpha: float = 2.0) -> dict[str, torch.Tensor]:
    """Two Linear layers and a 3x3 convolution."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {}
    for name, down, up in (
        (TEXT, (rank, 8), (12, rank)),
        (LINEAR, (rank, 10), (6, rank)),
        (CONV, (rank, 5, 3, 3), (7, rank, 1, 1)),
    ):
        tensors[f"{name}.lora_down.weight"] = normal(*down)
        tensors[f"{name}.lora_up.weight"] = normal(*up)
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def updates(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The update of each layer as the format defines it, flattened to a matrix: alpha / rank * up @ down."""
    made = {}
    for name in sorted({key.partition(".")[0] for key in tensors}):
        down, up = (tensors[f"{name}.lora_{part}.weight"].double().flatten(1) for part in ("down", "up"))
        made[name] = float(tensors[f"{name}.alpha"]) / len(down) * (up @ down)
    return made


@pytest.fixture
def lora(tmp_path):
    """Writes a LoRA file and gives its path."""

    def write(name: str, tensors=None, metadata=METADATA):
        save_file(lora_tensors(0) if tensors is None else tensors, tmp_path / name, metadata)
        return tmp_path / name

    return write
