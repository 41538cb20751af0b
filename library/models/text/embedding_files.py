"""Embedding files (textual inversion): one reader, one writer.

Written: `.safetensors` with `emb_params` (vectors, width); `.pt` and `.ckpt` with `string_to_param`, as the
AUTOMATIC1111 web UI writes them. For Stable Diffusion XL all have `clip_l` and `clip_g`, the vectors of its two text
encoders. An embedding with vectors for each cross-attention layer has one tensor
(vectors, width) under each layer's name (`IN01`, ..., `MID`, ..., `OUT11`) instead.

Read too: files of Diffusers, `{"<token>": tensor}`, and PNG images of the web UI that hold an embedding in the text
chunk `sd-ti-embedding` (not those that hold it in their pixels only, after a program removed the text).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from library.cli.errors import UserError, listed
from library.models.weights.checkpoint_files import open_weights
from library.models.weights.weight_writing import StoredTensor, stored, write_pickle, write_safetensors

PNG_ENDING = ".png"
_KEY = "emb_params"
_PARAMETERS = "string_to_param"
_ANY_TOKEN = "*"  # the key of the vectors in files of the web UI, whatever the token is
_ANY_TOKEN_ID = 265  # of "*" in the vocabulary, which the web UI notes beside it
_PNG_CHUNK = "sd-ti-embedding"
_PNG_TENSOR = "TORCHTENSOR"
_LAYER = re.compile(r"(IN\d\d|MID|OUT\d\d)")
_SDXL_KEYS = ("clip_l", "clip_g")


@dataclass(frozen=True)
class EmbeddingVectors:
    """The vectors of an embedding for each token table, (layers, vectors, width) float32.

    `tables`: by the names that files have for them, "emb_params" where a model has one text encoder. `layers`: names of
    the cross-attention layers; empty where one set of vectors serves all.
    """

    tables: Mapping[str, torch.Tensor]
    layers: tuple[str, ...] = ()

    @property
    def vectors(self) -> torch.Tensor:
        """Those of the first table."""
        return next(iter(self.tables.values()))


def read_embedding(path: Path) -> EmbeddingVectors:
    """The embedding in a file.

    Raises `UserError` for a file that is damaged, or holds none or several.
    """
    tensors = _from_png(path) if path.suffix.lower() == PNG_ENDING else dict(open_weights(path).tensors)
    parameters = {key: value for key, value in tensors.items() if key.startswith(f"{_PARAMETERS}.")}
    tensors = parameters or tensors
    if set(tensors) == set(_SDXL_KEYS):
        tables = {name: _checked(path, name, tensors[name])[None] for name in _SDXL_KEYS}
        if len({each.shape[1] for each in tables.values()}) > 1:
            raise UserError(f"{path}: its text encoders have different numbers of vectors", "make or copy it again")
        return EmbeddingVectors(tables)
    layers = tuple(key for key in tensors if _LAYER.fullmatch(key))
    if len(tensors) != 1 and len(layers) != len(tensors):
        raise UserError(
            f"{path} holds {len(tensors)} tensors ({listed(sorted(tensors), 3)}), not one embedding",
            "give a file with one embedding",
        )
    vectors = [_checked(path, name, tensors[name]) for name in layers or tensors]
    if len({each.shape for each in vectors}) > 1:
        raise UserError(f"{path}: its layers have different numbers of vectors", "make or copy it again")
    return EmbeddingVectors({_KEY: torch.stack(vectors)}, layers)


def _checked(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """(vectors, width) float32, a copy."""
    if tensor.dim() not in (1, 2) or tensor.numel() == 0 or not tensor.is_floating_point():
        raise UserError(
            f"{path}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not the vectors of an embedding",
            "give a file made by textual inversion",
        )
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{path}: {name} holds NaN or inf", "give a file that was saved earlier")
    return tensor.to(torch.float32, copy=True).reshape(-1, tensor.shape[-1])


def _from_png(path: Path) -> dict[str, torch.Tensor]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()  # texts can stand behind the pixels
            text = getattr(image, "text", {}).get(_PNG_CHUNK)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read: {error}", "copy or download it again") from None
    if text is None:
        raise UserError(
            f"{path} is an image without the text {_PNG_CHUNK} that holds an embedding",
            "give the original file: programs that save it again remove such texts",
        )
    try:
        parameters = json.loads(base64.b64decode(text, validate=True))[_PARAMETERS]
        return {f"{_PARAMETERS}.{key}": torch.tensor(value[_PNG_TENSOR]) for key, value in parameters.items()}
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its text {_PNG_CHUNK} is damaged: {error}", "copy or download it again") from None


def write_embedding(
    path: Path,
    embedding: EmbeddingVectors,
    *,
    name: str,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    step: int = 0,
) -> None:
    """Writes the file; its ending chooses the format. Raises `OSError` when it cannot be written.

    name (the token) and step (of the training) are stored in pickles, `metadata` in .safetensors files.
    """
    if embedding.layers:
        found = dict(zip(embedding.layers, embedding.vectors, strict=True))
    else:
        found = {name: vectors[0] for name, vectors in embedding.tables.items()}
    tensors = {key: stored(each, dtype) for key, each in found.items()}
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors, metadata)
    elif set(tensors) != {_KEY}:
        write_pickle(path, tensors)
    else:
        write_pickle(path, _web_ui_contents(tensors[_KEY], name, step))


def _web_ui_contents(vectors: StoredTensor, name: str, step: int) -> dict[str, object]:
    return {
        "string_to_token": {_ANY_TOKEN: _ANY_TOKEN_ID},
        _PARAMETERS: {_ANY_TOKEN: vectors},
        "name": name,
        "step": step,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }
