"""Cached text encoder outputs: files beside the images, for a frozen text encoder and fixed captions.

A file (`text_cache_path`) has, for each caption that the image is trained with, float32 arrays `<name>_<n>`, and in
`made_from.json` for each n the caption and what encoded it: `hidden_states_0` (tokens, width) of Stable Diffusion 1.x
and 2.x. In formats that other programs know, the first caption's arrays have no number: `hidden_state1`. Outputs of
another caption or encoder are never used.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from library.cli.damaged_files import DAMAGED_FILE_ERRORS
from library.cli.errors import UserError
from library.data.caches.npz_files import Facts, array_names, opened_arrays, read_made_from, write_stored

logger = logging.getLogger(__name__)

TextOutputs = Mapping[str, np.ndarray]  # of one caption, by the names of the family's conditioning


def read_text_outputs(
    path: Path, captions: Iterable[str], encoder: str, names: Sequence[str]
) -> dict[str, TextOutputs]:
    """The cached arrays `names` by caption, for those captions that this encoder has encoded.

    A corrupt file is ignored, with a warning.
    """
    found: dict[str, TextOutputs] = {}
    try:
        with opened_arrays(path) as file:
            assert file.zip is not None
            members = array_names(file.zip)
            entries = _entries(members, names[0])
            facts = {entry: read_made_from(file.zip, members, entry) for entry in entries}
            for caption in captions:
                wanted = _made_from(caption, encoder)
                entry = next((entry for entry in entries if facts[entry] == wanted), None)
                if entry is None or not all(name + entries[entry] in members for name in names):
                    continue
                arrays = {name: file[name + entries[entry]] for name in names}
                if all(_is_usable(array) for array in arrays.values()):
                    found[caption] = arrays
    except FileNotFoundError:
        return {}
    except DAMAGED_FILE_ERRORS as error:
        logger.warning("the cached text encoder outputs %s are corrupt and will be encoded again (%s)", path, error)
        return {}
    return found


def _entries(members: Collection[str], name: str) -> dict[str, str]:
    """The numbers of a file's captions, with the endings of their arrays' names: "_0", or nothing for the first."""
    numbered = sorted(member.removeprefix(f"{name}_") for member in members if member.startswith(f"{name}_"))
    return ({"0": ""} if name in members else {}) | {number: f"_{number}" for number in numbered}


def write_text_outputs(
    path: Path, outputs: Mapping[str, TextOutputs], encoder: str, *, numbers_first: bool = True
) -> None:
    """Writes the arrays of the captions in `outputs`, replacing the file.

    `numbers_first`: the first caption's arrays have a number in their names, as all others have. Raises `UserError` if
    the folder is not writable.
    """
    entries = {str(number): caption for number, caption in enumerate(outputs)}
    arrays = {
        f"{name}_{entry}" if numbers_first or entry != "0" else name: np.asarray(array, np.float32)
        for entry, caption in entries.items()
        for name, array in outputs[caption].items()
    }
    try:
        write_stored(path, arrays, {entry: _made_from(caption, encoder) for entry, caption in entries.items()})
    except OSError as error:
        raise UserError(
            f"cached text encoder outputs {path} cannot be written: {error.strerror}",
            hint="free disk space or make the folder writable, or use --cache_text_encoder_outputs alone",
        ) from None


def _is_usable(states: np.ndarray) -> bool:
    return states.dtype == np.float32 and bool(np.isfinite(states).all())


def _made_from(caption: str, encoder: str) -> Facts:
    return {"caption": caption, "encoder": encoder}
