"""Detects Stable Diffusion XL and what its small files say. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from library.cli.errors import UserError
from library.models.options import ModelOptions, PromptOptions
from library.models.reading.detection import DetectedModel, check_model, detect_in_file, detect_in_folder, read_configs
from library.models.sdxl.layout import SDXL
from library.models.weights.base_signs import BaseSigns
from library.models.weights.model_files import ModelFolder, TensorFile
from library.models.weights.model_kinds import is_sdxl, is_sdxl_folder

_TEXT_WIDTH, _OTHER_TEXT_WIDTHS = 2048, (768, 1024)  # of the text that U-Nets take; the others have one encoder


def is_stable_diffusion_xl(source: ModelFolder | TensorFile) -> bool:
    """Whether a folder or file is a Stable Diffusion XL base model, or the larger part of one."""
    return is_sdxl_folder(source.path) if isinstance(source, ModelFolder) else is_sdxl(source.tensors)


def detect(source: ModelFolder | TensorFile) -> DetectedModel:
    """What the small files of a model say. Raises `UserError` for damaged ones."""
    if isinstance(source, ModelFolder):
        return detect_in_folder(source, SDXL, read_configs(source, SDXL.parts))
    return detect_in_file(source, SDXL, num_text_layers=None)


def made_for(signs: BaseSigns) -> tuple[str, ...]:
    """The family, where a LoRA or an embedding shows that it is for it; none where it shows another, or nothing."""
    if signs.text_width in (_TEXT_WIDTH, *_OTHER_TEXT_WIDTHS):
        is_own = signs.text_width == _TEXT_WIDTH
    else:
        is_own = (
            {"clip_l", "clip_g"} <= set(signs.tables)
            or signs.has("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")
            or signs.has_deep_blocks
            or signs.says_version("sdxl")
        )
    return (SDXL.title,) if is_own else ()


def check_options(detected: DetectedModel, options: ModelOptions, prompts: PromptOptions) -> Iterator[UserError | str]:
    """Options that contradict the model, and models that cannot be trained."""
    if options.v2:
        yield UserError(f"--v2 was given, but {detected.source} is Stable Diffusion XL", "leave out --v2")
    yield from check_model(detected, options)
    if prompts.clip_skip is not None:
        yield (
            f"--clip_skip {prompts.clip_skip} has no effect: Stable Diffusion XL always takes the last but one layer of"
            " both text encoders"
        )
