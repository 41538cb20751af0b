"""Writes a Diffusers model folder, as `StableDiffusionPipeline.from_pretrained` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from library.models.layouts.ldm_writing import text_state
from library.models.layouts.parts import ModelParts
from library.models.text.text_encoder import config_entries
from library.models.text.tokenizer import CHUNK_LENGTH, PromptTokenizer
from library.models.weights.weight_writing import StoredTensor, stored, write_pickle, write_safetensors

_DIFFUSERS_NAME, _TRANSFORMERS_NAME = "diffusion_pytorch_model", "model"
# the level that published files have, whatever the version of transformers
_TEXT_LEVEL = "text_model."
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "trained_betas": None,
}
_CORRECTED = {
    "clip_sample": False,
    "steps_offset": 1,
}  # other values are legacy mistakes, which pipelines correct with a warning
_PIXELS_512, _PIXELS_768 = 512, 768


def write_folder(
    folder: Path,
    parts: ModelParts,
    tokenizer: PromptTokenizer,
    scheduler: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str] | None,
) -> None:
    """Fills an empty folder with the parts of a model, its tokenizer and its scheduler.

    `scheduler`: entries of its configuration, those absent are Stable Diffusion's. `metadata` None: weights become
    pickles (.bin); else .safetensors, each with the `modelspec.*` entries and the U-Net's with all of them. Raises
    `OSError`.
    """
    schedule = _scheduler_config(scheduler)
    pixels = _PIXELS_768 if schedule["prediction_type"] == "v_prediction" else _PIXELS_512
    specification = None
    if metadata is not None:
        specification = {key: value for key, value in metadata.items() if key.startswith("modelspec.")}
    _write_json(folder / "model_index.json", _model_index(schedule["_class_name"]))
    _write_json(folder / "scheduler" / "scheduler_config.json", schedule)
    scale = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    for name, module, size, texts in (
        ("unet", parts.unet, pixels // scale, metadata),
        ("vae", parts.vae, pixels, specification),
    ):
        config = json.loads(module.to_json_string())
        config["sample_size"] = config.get("sample_size") or size  # pipelines take their default size from it
        config.pop("_name_or_path", None)
        _write_json(folder / name / "config.json", config)
        tensors = {key: stored(tensor, dtype) for key, tensor in module.state_dict().items()}
        _write_weights(folder / name, _DIFFUSERS_NAME, tensors, texts)
    text = {_TEXT_LEVEL + key: stored(tensor, dtype) for key, tensor in text_state(parts.text_encoder).items()}
    _write_json(folder / "text_encoder" / "config.json", _text_config(parts.text_encoder, dtype))
    _write_weights(folder / "text_encoder", _TRANSFORMERS_NAME, text, specification)
    _write_tokenizer(folder / "tokenizer", tokenizer)


def _write_weights(
    folder: Path, name: str, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str] | None
) -> None:
    if metadata is not None:
        write_safetensors(folder / f"{name}.safetensors", tensors, metadata)
    else:
        write_pickle(folder / f"{_PICKLE_NAMES.get(name, name)}.bin", tensors)


_PICKLE_NAMES = {_TRANSFORMERS_NAME: "pytorch_model"}


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _model_index(scheduler_class: str) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler_class],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _scheduler_config(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The source's own configuration, where it is one of a known class; else a DDIM scheduler of the same schedule."""
    if hasattr(diffusers, str(scheduler.get("_class_name"))):
        corrected = {key: value for key, value in _CORRECTED.items() if key in scheduler}
        return {**scheduler, **corrected, "_diffusers_version": diffusers.__version__}
    return {**_SCHEDULER, **scheduler, "_class_name": _SCHEDULER["_class_name"]}


def _text_config(encoder: Any, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **config_entries(encoder.config),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": transformers.__version__,
    }


def _write_tokenizer(folder: Path, tokenizer: PromptTokenizer) -> None:
    """vocab.json, merges.txt and two configurations: the files that every version of transformers reads."""
    folder.mkdir()
    inner = tokenizer.tokenizer
    inner.backend_tokenizer.model.save(str(folder))
    texts = {
        "bos_token": inner.bos_token,
        "eos_token": inner.eos_token,
        "unk_token": inner.unk_token,
        "pad_token": inner.convert_ids_to_tokens(tokenizer.pad_id),
    }
    _write_json(folder / "special_tokens_map.json", texts)
    more = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CHUNK_LENGTH + 2, "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", {**texts, **more, "add_prefix_space": False, "errors": "replace"})
