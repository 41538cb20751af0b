"""What the files of a family look like: a description that readers and writers of every layout follow. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from library.cli.errors import UserError

EPSILON, V_PREDICTION = "epsilon", "v_prediction"
SCHEDULES = ("scaled_linear", "linear")  # of betas
NUM_TIMESTEPS = 1000


@dataclass(frozen=True)
class TextEncoderLayout:
    """One CLIP text encoder of a family.

    `name`: its folder, and its name in configurations. `prefix`: of its keys in a single file. `is_open_clip`: these
    are OpenCLIP's, with fused projections of attention, else those of `transformers`. `skips_last_layer`: files hold a
    last layer that is never used. `has_projection`: its pooled output is used. `stores_position_ids`: single files hold
    them. `tokenizer`: the folder of its tokenizer, which pads with the end token, or with "!".
    """

    name: str
    prefix: str
    title: str = "text encoder"
    is_open_clip: bool = False
    skips_last_layer: bool = False
    has_projection: bool = False
    stores_position_ids: bool = False
    tokenizer: str = "tokenizer"
    pads_with_end: bool = True

    @property
    def file_prefix(self) -> str:
        """Of all its keys in a single file, those that are not read too: cond_stage_model., conditioner.embedders.0."""
        return self.prefix.removesuffix("transformer.").removesuffix("model.")


@dataclass(frozen=True)
class ModelLayout:
    """Whole models of a family: a U-Net, a VAE and text encoders.

    `title`: for messages. `pipeline`: the class in model_index.json, `inpainting_pipeline`: that of models that take a
    mask, `index_entries`: what else that file says.
    `scheduler`: the configuration written where the source has none. `num_heads`: of attention in the U-Net, None for
    heads of width 64. `has_linear_projections`: single files hold linear projections around attention, whatever the
    model in memory has. `scaling_factor`: of the VAE, where its files do not say it. By prediction type: `usual_sizes`,
    pixels of a side; `versions`, as `ss_base_model_version`; `architectures` of SAI ModelSpec. `marks`: empty tensors
    in single files that say an entry of the scheduler's configuration. `names_layers_as_files`: adapter files name the
    U-Net's layers as single files do, not as Diffusers does.
    """

    title: str
    pipeline: str
    inpainting_pipeline: str
    text_encoders: tuple[TextEncoderLayout, ...]
    scaling_factor: float
    usual_sizes: Mapping[str, int]
    versions: Mapping[str, str]
    architectures: Mapping[str, str]
    num_heads: int | None = None
    has_linear_projections: bool = False
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    index_entries: Mapping[str, Any] = field(default_factory=dict)
    marks: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    names_layers_as_files: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders of a Diffusers model that hold weights."""
        return ("unet", "vae", *(text.name for text in self.text_encoders))

    @property
    def takes_pooled_text(self) -> bool:
        """Whether the U-Net takes the pooled output of a text encoder, beside the sizes and the crop of the image."""
        return any(text.has_projection for text in self.text_encoders)

    def text_encoder(self, name: str) -> TextEncoderLayout:
        """The text encoder of that name."""
        return next(text for text in self.text_encoders if text.name == name)

    def pipeline_for(self, unet: tuple[int, int]) -> str:
        """The class in model_index.json of a model whose U-Net takes and gives these channels."""
        return self.inpainting_pipeline if takes_masks(unet) else self.pipeline

    @property
    def titles(self) -> dict[str, str]:
        """What messages call the parts."""
        return {"unet": "U-Net", "vae": "VAE", **{text.name: text.title for text in self.text_encoders}}


def takes_masks(unet: tuple[int, int]) -> bool:
    """Whether a U-Net that takes and gives these channels is an inpainting model's.

    It takes the noisy latents, a mask of one channel, and the latents of the image without what the mask covers.
    """
    taken, given = unet
    return taken == 2 * given + 1


def fits_latents(unet: tuple[int, int], latents: int) -> bool:
    """Whether a U-Net that takes and gives these channels works on latents of so many."""
    return unet[1] == latents and (unet[0] == latents or takes_masks(unet))


def channels_error(source: str, unet: tuple[int, int], latents: int) -> UserError:
    """The error for a U-Net that does not take and give as many channels as the VAE's latents have."""
    return UserError(
        f"{source}: the U-Net takes {unet[0]} channels and gives {unet[1]}, the VAE's latents have {latents}",
        "depth, upscaling and editing variants cannot be trained; give a text-to-image or an inpainting model",
    )
