"""Detects what a model is from its keys and folders: of a family, or something else. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

# of single files in the Stability layout
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model."
TEXT_PREFIX_V1 = "cond_stage_model.transformer."
TEXT_PREFIX_V2 = "cond_stage_model.model."
SDXL_TEXT_PREFIXES = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
DIFFUSERS_VAE_MARK = "encoder.down_blocks."
PLAIN_VAE_MARK = "encoder.down."

_WRAPPERS = ("state_dict.", "model.", "module.")  # prefixes that programs add to all keys
_BARE_TEXT = "transformer.text_model."
_PARTS = ("unet", "text_encoder")  # and vae, whose place --vae can take
_OTHER_PARTS = ("transformer", "prior", "image_encoder")  # of models that are neither Stable Diffusion nor its XL
_SDXL = "Stable Diffusion XL"
_MODEL_INDEX = "model_index.json"


@dataclass(frozen=True)
class OtherKind:
    """What a model of no known family is: a phrase, and the name where it is of another family."""

    phrase: str
    family: str | None = None


def usual_keys(keys: Iterable[str]) -> dict[str, str]:
    """The keys that Stable Diffusion files usually have -> those given, which may have a prefix."""
    names = {key: key for key in keys}
    for front in _WRAPPERS:
        if not _has(names, UNET_PREFIX) and _has(names, front + UNET_PREFIX):
            names = {key.removeprefix(front): old for key, old in names.items()}
    if not _has(names, TEXT_PREFIX):
        names = {TEXT_PREFIX + key if key.startswith(_BARE_TEXT) else key: old for key, old in names.items()}
    return names


def is_v1(keys: Collection[str]) -> bool:
    """Whether these are the usual keys of an SD 1.x file, or most of one."""
    return _has(keys, UNET_PREFIX) and _has(keys, TEXT_PREFIX_V1)


def is_v2(keys: Collection[str]) -> bool:
    """Whether these are the usual keys of an SD 2.x file, or most of one."""
    return _has(keys, UNET_PREFIX) and _has(keys, TEXT_PREFIX_V2)


def is_sdxl(keys: Collection[str]) -> bool:
    """Whether these are the usual keys of a Stable Diffusion XL base file, or most of one."""
    return _has(keys, UNET_PREFIX) and _has(keys, *SDXL_TEXT_PREFIXES)


def has_vae(keys: Collection[str]) -> bool:
    """Whether a file with these keys holds a VAE, with others or alone."""
    return _has(keys, VAE_PREFIX, DIFFUSERS_VAE_MARK, PLAIN_VAE_MARK)


def is_stable_diffusion_folder(folder: Path) -> bool:
    """Whether a Diffusers folder has the parts of Stable Diffusion 1.x and 2.x, and none that other models have."""
    others = (*_OTHER_PARTS, "text_encoder_2")
    return (
        _family_of_pipeline(folder) is None
        and all((folder / part).exists() for part in _PARTS)
        and not any((folder / part).exists() for part in others)
    )


def is_sdxl_folder(folder: Path) -> bool:
    """Whether a Diffusers folder is a Stable Diffusion XL base model, by its pipeline or its parts."""
    if _family_of_pipeline(folder) == _SDXL:
        return not _is_refiner(folder)
    parts = (*_PARTS, "text_encoder_2")
    return (
        _pipeline(folder) == ""
        and all((folder / part).exists() for part in parts)
        and not any((folder / part).exists() for part in _OTHER_PARTS)
    )


def _is_refiner(folder: Path) -> bool:
    return (folder / "text_encoder_2").exists() and not (folder / "text_encoder").exists()


def kind_of_keys(keys: Collection[str]) -> OtherKind | None:
    """What a file with these keys is; None for a model of a known family."""
    usual = usual_keys(keys)
    if is_v1(usual) or is_v2(usual) or is_sdxl(usual):
        return None
    if any(mark in key for key in keys for mark in _ADAPTER_MARKS):
        return _ADAPTER
    for signs, kind in _SIGNS:
        if _has(usual, *signs):
            return kind
    first = ", ".join(list(keys)[:3])
    return OtherKind(f"not a model of a known family: it has no keys {UNET_PREFIX}*, but {first}, ...")


def kind_of_folder(folder: Path) -> OtherKind | None:
    """What a Diffusers folder is; None for a model of a known family, and where it does not show that."""
    if is_stable_diffusion_folder(folder) or is_sdxl_folder(folder):
        return None
    family, pipeline = _family_of_pipeline(folder), _pipeline(folder)
    if family == _SDXL:
        return _REFINER
    if family is not None:
        return _family(family)
    if pipeline and not pipeline.startswith("StableDiffusion"):
        return OtherKind(f"a model for {pipeline}, which is not supported")
    if (folder / "transformer").is_dir():
        return OtherKind("a model with a transformer instead of a U-Net")
    return None


def _has(keys: Iterable[str], *beginnings: str) -> bool:
    return any(key.startswith(beginnings) for key in keys)


def _pipeline(folder: Path) -> str:
    """The pipeline class in a folder's model_index.json; empty where there is none."""
    try:
        index = json.loads((folder / _MODEL_INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    return str(index.get("_class_name") or "") if isinstance(index, dict) else ""


def _family_of_pipeline(folder: Path) -> str | None:
    """The family that the pipeline class names, where it is not Stable Diffusion 1.x or 2.x."""
    pipeline = _pipeline(folder)
    return next((family for beginning, family in _PIPELINES if pipeline.startswith(beginning)), None)


def _family(name: str) -> OtherKind:
    return OtherKind(f"{'an' if name.startswith('A') else 'a'} {name} model", name)


def _with_prefix(*beginnings: str) -> tuple[str, ...]:
    """Prefixes of a network's keys, alone and in a file of a whole model."""
    return tuple(front + beginning for beginning in beginnings for front in ("", UNET_PREFIX))


_ADAPTER = OtherKind("an adapter (LoRA), not a whole model")
_ADAPTER_MARKS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora.down.", ".hada_w1_a", ".lokr_w1")
_REFINER = OtherKind("a Stable Diffusion XL refiner, not a base model", "Stable Diffusion XL refiner")
_EMBEDDING = OtherKind("a textual inversion embedding")
_VAE = OtherKind("a VAE alone")
_TEXT_ENCODER = OtherKind("a text encoder alone")
_CONTROL_NET = OtherKind("a ControlNet")
# prefixes of keys in files of other kinds; the first match counts, so specific ones come first
_SIGNS: tuple[tuple[tuple[str, ...], OtherKind], ...] = (
    (("lora_", "lycoris_"), _ADAPTER),
    ((f"{UNET_PREFIX}input_blocks.1.0.time_stack.",), _family("Stable Video Diffusion")),
    (("conditioner.embedders.0.model.",), _REFINER),
    (SDXL_TEXT_PREFIXES, OtherKind("a part of a Stable Diffusion XL model, without its U-Net")),
    (("conditioner.embedders.",), OtherKind("a variant of Stable Diffusion XL with other text encoders")),
    (_with_prefix("joint_blocks."), _family("Stable Diffusion 3")),
    (_with_prefix("txt_in.individual_token_refiner."), _family("HunyuanVideo")),
    (_with_prefix("distilled_guidance_layer."), _family("Chroma")),
    (_with_prefix("single_stream_modulation."), _family("FLUX.2")),
    (_with_prefix("early_stream_modulations."), _family("FLUX.3")),
    (_with_prefix("double_stream_blocks."), _family("HiDream")),
    (_with_prefix("double_blocks."), _family("FLUX")),
    (_with_prefix("double_layers.0.attn.w1q."), _family("AuraFlow")),
    (_with_prefix("layers.0.adaLN_modulation.0."), _family("Z-Image")),
    (_with_prefix("cap_embedder."), _family("Lumina")),
    (_with_prefix("blocks.0.cross_attn.q_linear."), _family("Sana")),
    (_with_prefix("head.modulation"), _family("Wan")),
    (_with_prefix("patchify_proj."), _family("LTX-Video")),
    (("clip_txt_mapper.", "down_blocks.1.0.channelwise."), _family("Stable Cascade")),
    (("control_model.", "controlnet_cond_embedding."), _CONTROL_NET),
    (("down_blocks.0.motion_modules.",), OtherKind("a motion module (AnimateDiff)")),
    ((UNET_PREFIX,), OtherKind("a U-Net without a text encoder")),
    ((VAE_PREFIX, PLAIN_VAE_MARK, DIFFUSERS_VAE_MARK), _VAE),
    (("down_blocks.",), OtherKind("a U-Net alone, part of a Diffusers folder")),
    (("text_model.", "encoder.block.", TEXT_PREFIX), _TEXT_ENCODER),
    (("emb_params", "string_to_param", "clip_g", "IN01"), _EMBEDDING),
)
# prefixes of other families' pipeline classes in Diffusers
_PIPELINES = (
    ("StableDiffusionXL", _SDXL),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("StableVideoDiffusion", "Stable Video Diffusion"),
    ("StableCascade", "Stable Cascade"),
    ("StableUnCLIP", "Stable unCLIP"),
    ("Flux2", "FLUX.2"),
    ("Flux3", "FLUX.3"),
    ("Flux", "FLUX"),
    ("Chroma", "Chroma"),
    ("Lumina", "Lumina"),
    ("ZImage", "Z-Image"),
    ("AuraFlow", "AuraFlow"),
    ("PixArt", "PixArt"),
    ("Sana", "Sana"),
    ("HunyuanDiT", "Hunyuan-DiT"),
    ("HunyuanVideo", "HunyuanVideo"),
    ("HunyuanImage", "HunyuanImage"),
    ("HiDream", "HiDream"),
    ("Kandinsky", "Kandinsky"),
    ("Kolors", "Kolors"),
    ("QwenImage", "Qwen-Image"),
    ("Wan", "Wan"),
    ("LTX", "LTX-Video"),
)
