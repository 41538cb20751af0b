"""Target layers of an adapter in a model, and their names in its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn


class TargetBlocks(Protocol):
    """The blocks whose layers are targets, by the names of their classes: see `AdapterBlocks` of the model families."""

    @property
    def linear(self) -> tuple[str, ...]: ...

    @property
    def convolutional(self) -> tuple[str, ...]: ...

    @property
    def text_encoder(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class DiffusersBlocks:
    """Those of U-Nets of Diffusers and of CLIP text encoders, which other programs hand over too."""

    linear: tuple[str, ...] = ("Transformer2DModel",)
    convolutional: tuple[str, ...] = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
    text_encoder: tuple[str, ...] = ("CLIPAttention", "CLIPSdpaAttention", "CLIPFlashAttention2", "CLIPMLP")


USUAL_BLOCKS = DiffusersBlocks()


@dataclass(frozen=True)
class Target:
    """A target layer of the base model, its name in adapter files, and that in its part of the model."""

    name: str
    module: nn.Linear | nn.Conv2d
    path: str


def unet_layers(unet: nn.Module, convolutions: bool, blocks: TargetBlocks = USUAL_BLOCKS) -> list[Target]:
    """Linear and 1x1 convolution layers of the transformer blocks; with `convolutions` also all layers of the
    residual, down- and upsampling blocks."""
    if convolutions:
        return list(_layers_in_blocks("lora_unet", unet, blocks.linear + blocks.convolutional))
    targets = _layers_in_blocks("lora_unet", unet, blocks.linear)
    return [target for target in targets if not is_spatial(target.module)]


def text_encoder_layers(
    text_encoder: nn.Module | Sequence[nn.Module], blocks: TargetBlocks = USUAL_BLOCKS
) -> list[Target]:
    """Linear layers of attention and MLP blocks, of one text encoder or several."""
    return [
        target
        for prefix, encoder in _named_text_encoders(text_encoder)
        for target in _layers_in_blocks(prefix, encoder, blocks.text_encoder)
        if isinstance(target.module, nn.Linear)
    ]


def all_layers(text_encoder: nn.Module | Sequence[nn.Module], unet: nn.Module) -> Iterator[Target]:
    """Every layer that an adapter file can have weights for."""
    for prefix, encoder in _named_text_encoders(text_encoder):
        yield from _layers(prefix, encoder)
    yield from _layers("lora_unet", unet)


def is_spatial(module: nn.Module) -> bool:
    """Whether a layer is a convolution with a kernel larger than 1x1."""
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _named_text_encoders(text_encoder: nn.Module | Sequence[nn.Module]) -> list[tuple[str, nn.Module]]:
    encoders = [text_encoder] if isinstance(text_encoder, nn.Module) else list(text_encoder or ())
    single = len(encoders) == 1
    prefixes = ["lora_te" if single else f"lora_te{number}" for number in range(1, len(encoders) + 1)]
    # recent transformers have no inner text_model; adapter keys always have it
    return [
        (prefix if hasattr(encoder, "text_model") else f"{prefix}_text_model", encoder)
        for prefix, encoder in zip(prefixes, encoders, strict=True)
    ]


def _layers_in_blocks(prefix: str, root: nn.Module, block_classes: Sequence[str]) -> Iterator[Target]:
    block = ""
    for path, module in root.named_modules():
        if type(module).__name__ in block_classes:
            block = f"{path}."
        elif block and path.startswith(block) and isinstance(module, (nn.Linear, nn.Conv2d)):
            yield Target(_key(prefix, path), module, path)


def _layers(prefix: str, root: nn.Module) -> Iterator[Target]:
    for path, module in root.named_modules():
        if path and isinstance(module, (nn.Linear, nn.Conv2d)):
            yield Target(_key(prefix, path), module, path)


def other_names(unet: nn.Module) -> dict[str, str]:
    """Names that layers of the U-Net have in other programs' files -> their names here.

    A U-Net that is handed over under the names of its family's files says its others: `other_names`, path -> path.
    """
    paths: Mapping[str, str] = getattr(unet, "other_names", {})
    return {_key("lora_unet", other): _key("lora_unet", path) for other, path in paths.items()}


def _key(prefix: str, path: str) -> str:
    return f"{prefix}_{path}".replace(".", "_")
