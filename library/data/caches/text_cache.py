"""Outputs of a frozen text encoder in files beside the images, for captions that never change.

A file `<image with its ending>_sd_te.npz` holds, for each caption that the image is trained with,
`hidden_states_<n>` (tokens, width) float32 and `made_from_<n>`, a JSON text of the caption and of what encoded it.
What was made from something else is never used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from library.cli.atomic_files import atomic_path
from library.cli.errors import UserError
from library.data.caches.latent_arrays import DAMAGE_ERRORS, opened_arrays

logger = logging.getLogger(__name__)

_HIDDEN_STATES, _MADE_FROM = "hidden_states_", "made_from_"


def text_cache_path(image: str) -> Path:
    """The file of an image's encoded captions."""
    return Path(f"{image}_sd_te.npz")


def read_text_outputs(image: str, captions: Iterable[str], encoder: str) -> dict[str, np.ndarray]:
    """The hidden states (tokens, width) of those captions that the image's file holds, made by this encoder.

    A damaged file counts as none, with a warning.
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
        logger.warning("the encoded captions %s are damaged and are made anew (%s)", path, error)
        return {}
    return found


def write_text_outputs(image: str, states: Mapping[str, np.ndarray], encoder: str) -> None:
    """Writes the hidden states of an image's captions, in place of what its file held.

    Raises `UserError` if the folder cannot be written to.
    """
    path, arrays = text_cache_path(image), {}
    for number, (caption, each) in enumerate(states.items()):
        arrays[f"{_HIDDEN_STATES}{number}"] = np.asarray(each, dtype=np.float32)
        arrays[f"{_MADE_FROM}{number}"] = np.array(_made_from(caption, encoder))
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(
            f"encoded captions {path} cannot be written: {error.strerror}",
            hint="make room or the folder writable, or use --cache_text_encoder_outputs alone",
        ) from None


def _made_from(caption: str, encoder: str) -> str:
    return json.dumps({"caption": caption, "encoder": encoder}, sort_keys=True)
