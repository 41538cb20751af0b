"""Detects Stable Diffusion 1.x and 2.x, which of them, and what small files say. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from library.cli.errors import UserError
from library.models.layouts.model_layout import EPSILON
from library.models.options import ModelOptions, PromptOptions
from library.models.reading.detection import DetectedModel, check_model, detect_in_file, detect_in_folder, read_configs
from library.models.stable_diffusion.layout import SD_1, SD_2, layout_of
from library.models.weights.base_signs import BaseSigns
from library.models.weights.model_files import ModelFolder, TensorFile
from library.models.weights.model_kinds import (
    TEXT_PREFIX_V1,
    TEXT_PREFIX_V2,
    is_stable_diffusion_folder,
    is_v1,
    is_v2,
)

_WIDTH_SD1, _WIDTH_SD2 = 768, 1024
_LAYERS_SD2 = 23  # of the text encoder, without its last, which some files have
_LAYER_V1 = re.compile(re.escape(TEXT_PREFIX_V1) + r"(?:text_model\.)?encoder\.layers\.(\d+)\.")
_LAYER_V2 = re.compile(re.escape(TEXT_PREFIX_V2) + r"transformer\.resblocks\.(\d+)\.")


def is_stable_diffusion(source: ModelFolder | TensorFile) -> bool:
    """Whether a folder or file is a Stable Diffusion 1.x or 2.x model, or the larger part of one."""
    if isinstance(source, ModelFolder):
        return is_stable_diffusion_folder(source.path)
    return is_v1(source.tensors) or is_v2(source.tensors)


def detect(source: ModelFolder | TensorFile) -> DetectedModel:
    """What the small files of a Stable Diffusion model say. Raises `UserError` for damaged ones."""
    if isinstance(source, ModelFolder):
        return _detect_folder(source)
    is_second = is_v2(source.tensors)
    return detect_in_file(source, layout_of(is_second), _num_text_layers(source, is_second))


def _detect_folder(folder: ModelFolder) -> DetectedModel:
    configs = read_configs(folder, ("text_encoder", "unet", "vae"))
    text, unet = configs["text_encoder"], configs["unet"]
    is_second = (
        text.get("hidden_act") == "gelu"
        or text.get("hidden_size") == _WIDTH_SD2
        or unet.get("use_linear_projection") is True
        or isinstance(unet.get("attention_head_dim"), list)
    )
    return detect_in_folder(folder, layout_of(is_second), configs)


def _num_text_layers(file: TensorFile, is_v2: bool) -> int | None:
    """The number of layers; of SD 2.x without the last one, which is not used."""
    layer = _LAYER_V2 if is_v2 else _LAYER_V1
    indices = [int(match[1]) for match in map(layer.match, file.tensors) if match]
    if not indices:
        return None
    count = max(indices) + 1
    return count - 1 if is_v2 and count != _LAYERS_SD2 else count


def made_for(signs: BaseSigns) -> tuple[str, ...]:
    """The versions that a LoRA or an embedding can be for; none where it shows another family, or nothing."""
    widths = {_WIDTH_SD1: (SD_1.title,), _WIDTH_SD2: (SD_2.title,)}
    if signs.text_width in widths:
        return widths[signs.text_width]
    if set(signs.tables) == {"emb_params"}:
        return widths.get(signs.tables["emb_params"], (SD_1.title, SD_2.title))
    if signs.has("lora_te_text_model_"):  # of several encoders each has a number
        return SD_1.title, SD_2.title
    layouts = [layout for layout in (SD_1, SD_2) if signs.says_version(layout.versions[EPSILON])]
    return tuple(layout.title for layout in layouts)


def check_options(detected: DetectedModel, options: ModelOptions, prompts: PromptOptions) -> Iterator[UserError | str]:
    """Options that contradict the model, models that cannot be trained, and warnings of what it does not say."""
    source = detected.source
    if options.v2 and detected.layout is SD_1:
        yield UserError(f"--v2 was given, but {source} is Stable Diffusion 1.x", "leave out --v2")
    if not options.v_parameterization and detected.prediction_type is None and detected.layout is SD_2:
        yield (
            f"{source} does not say what it predicts, noise (epsilon) is assumed; SD 2.x 768 needs --v_parameterization"
        )
    yield from check_model(detected, options)
    skip, num_layers = prompts.clip_skip, detected.num_text_layers
    if skip is not None and num_layers is not None and skip > num_layers:
        yield UserError(
            f"--clip_skip {skip}: the text encoder of {source} has {num_layers} layers", f"give {num_layers} or less"
        )
    elif detected.layout is SD_2 and skip is not None and skip > 1:
        yield (
            f"--clip_skip {skip} counts from the penultimate layer, which SD 2.x uses by default; such models are"
            " normally used without clip skip"
        )
