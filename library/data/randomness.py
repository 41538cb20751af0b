"""Keyed random seeds: a pure function of the position in the run, never of what ran before."""

from __future__ import annotations

import hashlib
import random


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as ("noise", seed, epoch, index); equal on every machine and Python version."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def keyed_random(*key: int | str) -> random.Random:
    """A generator of Python's `random`, seeded from a key."""
    return random.Random(derive_seed(*key))
