"""Hashes by which image programs identify model files."""

from __future__ import annotations

import hashlib
import os

LEGACY_BLOCK = slice(0x100000, 0x110000)  # 64 KiB at offset 1 MiB


def model_hash(path: str | os.PathLike[str]) -> str:
    """The legacy hash of a model file: SHA-256 of 64 KiB at offset 1 MiB, first 8 hexadecimal digits."""
    with open(path, "rb") as file:
        file.seek(LEGACY_BLOCK.start)
        return hashlib.sha256(file.read(LEGACY_BLOCK.stop - LEGACY_BLOCK.start)).hexdigest()[:8]


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a whole file, read in blocks of 1 MiB; hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
