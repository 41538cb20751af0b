"""Cached text encoder outputs: files beside the images, for a frozen text encoder and fixed captions.

A file `<image with its extension>_sd_te.npz` has, for each caption that the image is trained with,
`hidden_states_<n>` (tokens, width) float32, and in `made_from.json` for each n the caption and what encoded it. Outputs
of another caption or encoder are never used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np

from library.cli.damaged_files import DAMAGED_FILE_ERRORS
from library.cli.errors import UserError
from library.data.caches.cache_names import text_cache_path
from library.data.caches.npz_files import Facts, array_names, opened_arrays, read_made_from, write_stored

logger = logging.getLogger(__name__)

_HIDDEN_STATES = "hidden_states_"


def read_text_outputs(image: str, captions: Iterable[str], encoder: str) -> dict[str, np.ndarray]:
    """The cached hidden states (tokens, width) by caption, for those captions that this encoder has encoded.

    A corrupt file is ignored, with a warning.
    """
    path, found = text_cache_path(image), {}
    try:
        with opened_arrays(path) as file:
            assert file.zip is not None
            names = array_names(file.zip)
            entries = [name.removeprefix(_HIDDEN_STATES) for name in sorted(names) if name.startswith(_HIDDEN_STATES)]
            facts = {entry: read_made_from(file.zip, names, entry) for entry in entries}
            for caption in captions:
                wanted = _made_from(caption, encoder)
                entry = next((entry for entry in entries if facts[entry] == wanted), None)
                states = None if entry is None else file[_HIDDEN_STATES + entry]
                if states is not None and _is_usable(states):
                    found[caption] = states
    except FileNotFoundError:
        return {}
    except DAMAGED_FILE_ERRORS as error:
        logger.warning("the cached text encoder outputs %s are corrupt and will be encoded again (%s)", path, error)
        return {}
    return found


def write_text_outputs(image: str, states: Mapping[str, np.ndarray], encoder: str) -> None:
    """Writes the hidden states of an image's captions, replacing its file.

    Raises `UserError` if the folder is not writable.
    """
    path = text_cache_path(image)
    entries = {str(number): caption for number, caption in enumerate(states)}
    arrays = {_HIDDEN_STATES + entry: np.asarray(states[caption], np.float32) for entry, caption in entries.items()}
    try:
        write_stored(path, arrays, {entry: _made_from(caption, encoder) for entry, caption in entries.items()})
    except OSError as error:
        raise UserError(
            f"cached text encoder outputs {path} cannot be written: {error.strerror}",
            hint="free disk space or make the folder writable, or use --cache_text_encoder_outputs alone",
        ) from None


def _is_usable(states: np.ndarray) -> bool:
    return states.dtype == np.float32 and states.ndim == 2 and bool(np.isfinite(states).all())


def _made_from(caption: str, encoder: str) -> Facts:
    return {"caption": caption, "encoder": encoder}
