"""What the files of Stable Diffusion 1.x and 2.x look like. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from library.models.layouts.model_layout import EPSILON, V_PREDICTION, ModelLayout, TextEncoderLayout
from library.models.weights.model_kinds import TEXT_PREFIX_V1, TEXT_PREFIX_V2

SD_1 = ModelLayout(
    title="Stable Diffusion 1.x",
    pipeline="StableDiffusionPipeline",
    inpainting_pipeline="StableDiffusionInpaintPipeline",
    text_encoders=(TextEncoderLayout("text_encoder", TEXT_PREFIX_V1),),
    num_heads=8,
    scaling_factor=0.18215,
    usual_sizes={EPSILON: 512, V_PREDICTION: 512},
    versions={EPSILON: "sd_v1", V_PREDICTION: "sd_v1_v"},
    architectures={EPSILON: "stable-diffusion-v1", V_PREDICTION: "stable-diffusion-v1"},
    scheduler={
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "trained_betas": None,
    },
    index_entries={"requires_safety_checker": False, "safety_checker": [None, None]},
)
SD_2 = replace(
    SD_1,
    title="Stable Diffusion 2.x",
    text_encoders=(
        TextEncoderLayout(
            "text_encoder", TEXT_PREFIX_V2, is_open_clip=True, skips_last_layer=True, pads_with_end=False
        ),
    ),
    usual_sizes={EPSILON: 512, V_PREDICTION: 768},
    versions={EPSILON: "sd_v2", V_PREDICTION: "sd_v2_v"},
    architectures={EPSILON: "stable-diffusion-v2-512", V_PREDICTION: "stable-diffusion-v2-768-v"},
    num_heads=None,
    has_linear_projections=True,
)


def layout_of(is_v2: bool) -> ModelLayout:
    """The layout of a version."""
    return SD_2 if is_v2 else SD_1
