"""How much a LoRA costs in forward and backward of the U-Net: beside the frozen U-Net, and beside PEFT's LoRA.

    python -m benchmarks.lora_step [--rank 16] [--share 0.25] [--size 32] [--conv] [--dora] [--rounds 5]

A U-Net with the geometry of SD 1.5, of a share of its width and with random weights, is run in turns in one run:
frozen, with gradients of the activations alone (1.00); with the layers of `networks.lora`; with PEFT's on the same
modules, at the same rank. The best of the rounds counts, since a busy machine only ever takes time away; what the CPU
computed is counted beside the time on the clock.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import peft
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from benchmarks.turns import best_of
from networks.lora import create_network


def make_unet(share: float) -> nn.Module:
    """SD 1.5's U-Net, of `share` of its width."""
    unet = UNet2DConditionModel(
        block_out_channels=[max(64, round(width * share / 64) * 64) for width in (320, 640, 1280, 1280)],
        cross_attention_dim=max(64, round(768 * share / 64) * 64),
        attention_head_dim=8,
    )
    return unet.requires_grad_(False).train()


def measure(
    share: float, size: int, batch_size: int, rank: int, *, conv: bool, dora: bool, num_rounds: int
) -> dict[str, tuple[float, float]]:
    """Seconds of forward and backward, on the clock and of the CPU: `frozen`, `ours`, `peft`."""
    torch.manual_seed(0)
    frozen = make_unet(share)
    ours, theirs = copy.deepcopy(frozen), copy.deepcopy(frozen)
    arguments = {"conv_dim": str(rank), "conv_alpha": str(rank)} if conv else {}
    network = create_network(1.0, rank, rank, None, [], ours, **arguments, use_dora=str(dora))
    bases = {layer.base for layer in network.layers()}
    targets = [name for name, module in ours.named_modules() if module in bases]
    network.apply_to([], ours)
    network.train()
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, use_dora=dora)
    peft.inject_adapter_in_model(config, theirs)
    num_trained = [sum(p.numel() for p in each.parameters() if p.requires_grad) for each in (network, theirs)]
    assert num_trained[0] == num_trained[1], num_trained
    text_width = frozen.config.cross_attention_dim
    latents, text = torch.randn(batch_size, 4, size, size), torch.randn(batch_size, 77, text_width)
    timesteps = torch.full((batch_size,), 500)

    def step(unet: nn.Module) -> Callable[[], None]:
        def run() -> None:
            inputs = latents.clone().requires_grad_()  # so that all activations have gradients in each
            unet(inputs, timesteps, text).sample.square().mean().backward()

        return run

    return best_of({"frozen": step(frozen), "ours": step(ours), "peft": step(theirs)}, num_rounds, lambda: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.25, help="share of SD 1.5's width")
    parser.add_argument("--size", type=int, default=32, help="width and height of the latents")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--conv", action="store_true", help="3x3 convolutions, too")
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    seconds = measure(
        args.share, args.size, args.batch_size, args.rank, conv=args.conv, dora=args.dora, num_rounds=args.rounds
    )
    clock, cpu = seconds["frozen"]
    print(f"frozen: {clock:.3f} s, {cpu:.3f} s of the CPU")
    for name in ("ours", "peft"):
        print(
            f"{name}: {seconds[name][0] / clock:.2f} times the frozen U-Net, {seconds[name][1] / cpu:.2f} by CPU time"
        )


if __name__ == "__main__":
    main()
