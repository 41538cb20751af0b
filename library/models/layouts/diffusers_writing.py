"""Writes a Diffusers model folder, as `from_pretrained` of its pipeline reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from library.models.layouts.formats import SavedModel
from library.models.layouts.ldm_text import LEVEL
from library.models.layouts.ldm_writing import text_state
from library.models.layouts.model_layout import ModelLayout, TextEncoderLayout
from library.models.text.text_encoder import TextEncoder, config_entries
from library.models.text.tokenizer import CHUNK_LENGTH, PromptTokenizer
from library.models.weights.weight_writing import StoredTensor, stored, write_pickle, write_safetensors

_DIFFUSERS_NAME, _TRANSFORMERS_NAME = "diffusion_pytorch_model", "model"
_CORRECTED = {
    "clip_sample": False,
    "steps_offset": 1,
}  # other values are legacy mistakes, which pipelines correct with a warning


def write_folder(folder: Path, model: SavedModel, metadata: Mapping[str, str] | None) -> None:
    """Fills an empty folder with the parts of a model, its tokenizers and its scheduler.

    Entries of the scheduler's configuration that are absent are those of the layout. `metadata` None: weights become
    pickles (.bin); else .safetensors, each with the `modelspec.*` entries and the U-Net's with all of them. Raises
    `OSError`.
    """
    parts, layout, dtype = model.parts, model.layout, model.dtype
    schedule = _scheduler_config(model.scheduler, layout)
    pixels = layout.usual_sizes[schedule["prediction_type"]]
    specification = None
    if metadata is not None:
        specification = {key: value for key, value in metadata.items() if key.startswith("modelspec.")}
    _write_json(folder / "model_index.json", _model_index(layout, parts.unet_channels, schedule["_class_name"]))
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
    for text in layout.text_encoders:
        encoder = parts.text_encoders[text.name]
        _write_json(folder / text.name / "config.json", _text_config(encoder, text, dtype))
        state = {_file_name(key): stored(tensor, dtype) for key, tensor in text_state(encoder).items()}
        _write_weights(folder / text.name, _TRANSFORMERS_NAME, state, specification)
        _write_tokenizer(folder / text.tokenizer, model.tokenizers[text.tokenizer])


def _file_name(key: str) -> str:
    """With the level that published files have, whatever the version of transformers."""
    return key if key.startswith("text_projection.") else LEVEL + key


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


def _model_index(layout: ModelLayout, unet: tuple[int, int], scheduler_class: str) -> dict[str, Any]:
    return {
        "_class_name": layout.pipeline_for(unet),
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", scheduler_class],
        **{text.name: ["transformers", _text_class(text)] for text in layout.text_encoders},
        **{text.tokenizer: ["transformers", "CLIPTokenizer"] for text in layout.text_encoders},
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **layout.index_entries,
    }


def _scheduler_config(scheduler: Mapping[str, Any], layout: ModelLayout) -> dict[str, Any]:
    """The source's own configuration, where it is one of a known class; else the layout's with the same schedule."""
    if hasattr(diffusers, str(scheduler.get("_class_name"))):
        corrected = {key: value for key, value in _CORRECTED.items() if key in scheduler}
        return {**scheduler, **corrected, "_diffusers_version": diffusers.__version__}
    return {**layout.scheduler, **scheduler, "_class_name": layout.scheduler["_class_name"]}


def _text_class(text: TextEncoderLayout) -> str:
    return "CLIPTextModelWithProjection" if text.has_projection else "CLIPTextModel"


def _text_config(encoder: TextEncoder, text: TextEncoderLayout, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": [_text_class(text)],
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
