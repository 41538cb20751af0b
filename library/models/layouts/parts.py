"""The parts of a model (U-Net, VAE, text encoders), built from their configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from library.cli.errors import UserError, first_line
from library.models.layouts.model_layout import TextEncoderLayout
from library.models.text.text_encoder import TextEncoder, build_text_encoder, restore_position_ids
from library.models.weights.module_weights import build_empty

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class ModelParts:
    """The loaded parts, float32, frozen, in eval mode."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: Mapping[str, TextEncoder]  # by the names of their folders, in the order of the layout
    # tensors of a single file that are never used, under their keys
    unused_tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def unet_channels(self) -> tuple[int, int]:
        """What the U-Net takes and gives."""
        return self.unet.config.in_channels, self.unet.config.out_channels

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All parts by name."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}


def empty_unet(config: Mapping[str, Any], source: str) -> UNet2DConditionModel:
    """A U-Net without weights for a Diffusers configuration; raises `UserError` for an invalid one."""
    return _build(lambda: UNet2DConditionModel.from_config(dict(config)), source, "U-Net")


def empty_vae(config: Mapping[str, Any], source: str) -> AutoencoderKL:
    """A VAE without weights for a Diffusers configuration; raises `UserError` for an invalid one."""
    return _build(lambda: AutoencoderKL.from_config(dict(config)), source, "VAE")


def empty_text_encoder(config: Mapping[str, Any], source: str, text: TextEncoderLayout) -> TextEncoder:
    """A text encoder without weights for a CLIP text config.json; raises `UserError` for an invalid one."""
    encoder = _build(lambda: build_text_encoder(config, text.has_projection), source, text.title)
    restore_position_ids(encoder)
    return encoder.eval()


def _build(build: Callable[[], ModuleT], source: str, part: str) -> ModuleT:
    try:
        return build_empty(build)
    except (
        ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, StrictDataclassError,
    ) as error:  # fmt: skip
        # what libraries raise for configurations that contradict themselves
        raise UserError(
            f"{source}: the {part} cannot be built from its configuration: {first_line(error)}", "check its config.json"
        ) from error
