"""Cached text encoder outputs: files beside the images, for a frozen text encoder and fixed captions.

A file `<image with its extension>_sd_te.npz` has, for each caption that the image is trained with,
`hidden_states_<n>` (tokens, width) float32 and `made_from_<n>`, a JSON text of the caption and of what encoded it.
Outputs of another caption or encoder are never used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError
from library.data.caches.latent_arrays import DAMAGE_ERRORS, opened_arrays

logger = logging.getLogger(__name__)

_HIDDEN_STATES, _MADE_FROM = "hidden_states_", "made_from_"


def text_cache_path(image: str) -> Path:
    """The file of an image's cached text encoder outputs."""
    return Path(f"{image}_sd_te.npz")


def read_text_outputs(image: str, captions: Iterable[str], encoder: str) -> dict[str, np.ndarray]:
    """The cached hidden states (tokens, width) by caption, for those captions that this encoder has encoded.

    A corrupt file is ignored, with a warning.
    """
    path, wanted = text_cache_path(image), {_made_from(caption, encoder): caption for caption in captions}
    found = {}
    try:
        with opened_arrays(path) as file:
            for name in file:
                caption = wanted.get(str(file[name])) if name.startswith(_MADE_FROM) else None
                if caption is not None:
                    states = file[_HIDDEN_STATES + name.removeprefix(_MADE_FROM)]
                    if states.dtype == np.float32 and states.ndim == 2 and np.isfinite(states).all():
                        found[caption] = states
    except FileNotFoundError:
        return {}
    except DAMAGE_ERRORS as error:
        logger.warning("the cached text encoder outputs %s are corrupt and will be encoded again (%s)", path, error)
        return {}
    return found


def write_text_outputs(image: str, states: Mapping[str, np.ndarray], encoder: str) -> None:
    """Writes the hidden states of an image's captions, replacing its file.

    Raises `UserError` if the folder is not writable.
    """
    path = text_cache_path(image)
    arrays: dict[str, Any] = {}
    for number, (caption, each) in enumerate(states.items()):
        arrays[f"{_HIDDEN_STATES}{number}"] = np.asarray(each, dtype=np.float32)
        arrays[f"{_MADE_FROM}{number}"] = np.array(_made_from(caption, encoder))
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(
            f"cached text encoder outputs {path} cannot be written: {error.strerror}",
            hint="free disk space or make the folder writable, or use --cache_text_encoder_outputs alone",
        ) from None


def _made_from(caption: str, encoder: str) -> str:
    return json.dumps({"caption": caption, "encoder": encoder}, sort_keys=True)
