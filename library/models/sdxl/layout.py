"""What the files of Stable Diffusion XL look like. Imports no torch."""

from __future__ import annotations

from library.models.layouts.model_layout import EPSILON, V_PREDICTION, ModelLayout, TextEncoderLayout
from library.models.weights.model_kinds import SDXL_TEXT_PREFIXES

SDXL = ModelLayout(
    title="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    inpainting_pipeline="StableDiffusionXLInpaintPipeline",
    text_encoders=(
        TextEncoderLayout(
            "text_encoder", SDXL_TEXT_PREFIXES[0], title="first text encoder (CLIP ViT-L)", stores_position_ids=True
        ),
        TextEncoderLayout(
            "text_encoder_2",
            SDXL_TEXT_PREFIXES[1],
            title="second text encoder (OpenCLIP ViT-bigG)",
            is_open_clip=True,
            has_projection=True,
            tokenizer="tokenizer_2",
            pads_with_end=False,
        ),
    ),
    has_linear_projections=True,
    scaling_factor=0.13025,
    usual_sizes={EPSILON: 1024, V_PREDICTION: 1024},
    versions={EPSILON: "sdxl_base_v1-0", V_PREDICTION: "sdxl_base_v1-0"},
    architectures={EPSILON: "stable-diffusion-xl-v1-base", V_PREDICTION: "stable-diffusion-xl-v1-base"},
    scheduler={
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    },
    index_entries={"force_zeros_for_empty_prompt": True},
    names_layers_as_files=True,
    marks={"v_pred": ("prediction_type", V_PREDICTION), "ztsnr": ("rescale_betas_zero_snr", True)},
)
