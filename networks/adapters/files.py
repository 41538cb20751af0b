"""Adapter files: one reader, one writer, and the hashes by which other programs identify a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from library.cli.atomic_files import atomic_path
from library.cli.damaged_files import DAMAGED_FILE_ERRORS
from library.cli.documents import valid_metadata
from library.cli.errors import UserError, first_line
from library.cli.file_hashes import LEGACY_BLOCK
from networks.adapters.formats.peft import own_form

_PICKLE_SUFFIXES = (".pt", ".ckpt", ".bin")


def save_adapter(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes adapter weights atomically.

    `.safetensors` gets `metadata` plus `sshs_model_hash` and `sshs_legacy_hash`; `.pt`, `.ckpt` and `.bin` hold no
    metadata. `dtype` None keeps each tensor's own. Raises UserError for any other suffix.
    """
    path = Path(path)
    tensors = {name: _storable(tensor, dtype) for name, tensor in state_dict.items()}
    if path.suffix == ".safetensors":
        metadata = valid_metadata(metadata or {})
        content = safetensors.torch.save(tensors, metadata | adapter_hashes(tensors, metadata))
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    else:
        _check_pickle_suffix(path)
        with atomic_path(path) as temporary:
            torch.save(tensors, temporary)


def _storable(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()


def adapter_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`sshs_model_hash` and `sshs_legacy_hash` of a `.safetensors` adapter, as web UIs compute them for their index.

    The first is the SHA-256 of the tensor data, whatever the metadata. The second hashes 64 KiB at offset 1 MiB of the
    file as it would be with the `ss_*` metadata only, because users edit the rest. With entries of the model
    specification (SAI ModelSpec), its `modelspec.hash_sha256` is added, which is the first hash again.
    """
    training_metadata = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = memoryview(safetensors.torch.save(dict(tensors), training_metadata))
    data_start = 8 + int.from_bytes(content[:8], "little")
    data_hash = hashlib.sha256(content[data_start:]).hexdigest()
    legacy_hash = hashlib.sha256(content[LEGACY_BLOCK]).hexdigest()[:8]
    specified = {"modelspec.hash_sha256": f"0x{data_hash}"} if "modelspec.sai_model_spec" in metadata else {}
    return {"sshs_model_hash": data_hash, "sshs_legacy_hash": legacy_hash, **specified}


def load_adapter(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Reads adapter weights onto the CPU; a pickle only with `weights_only=True`. PEFT's names become ours.

    Raises UserError if the file is missing, damaged, of another kind, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"adapter weights not found: {path}", hint="check the path")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            return dict(own_form(safetensors.torch.load_file(path, device="cpu"), metadata, path))
        _check_pickle_suffix(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *DAMAGED_FILE_ERRORS) as error:
        raise UserError(f"cannot read adapter weights from {path}: {first_line(error)}", hint=_DAMAGED_HINT) from error
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise UserError(f"{path} does not hold adapter weights", hint="give a LoRA file")
    return dict(own_form(content, {}, path))


_DAMAGED_HINT = "the file is damaged or incomplete, or not what its name says: copy or download it again"


def _check_pickle_suffix(path: Path) -> None:
    if path.suffix not in _PICKLE_SUFFIXES:
        raise UserError(
            f"{path}: adapter weights cannot have the file type {path.suffix!r}",
            hint=f"use .safetensors, or one of {', '.join(_PICKLE_SUFFIXES)}",
        )
