"""The facts of what latents were made from, which say whether they can still be used.

An image is unchanged if its size in bytes, mtime and ctime are, or else its content: a copied dataset keeps its
latents, and an image that was replaced by one of the same size and mtime does not.
"""

from __future__ import annotations

import hashlib
import os

from library.data.caches.npz_files import Facts
from library.data.records import LatentKey

_CONTENT = "content"  # the fact that is the hash of the image file
_DIGEST_BYTES = 16
_TIMES = frozenset(("mtime_ns", "ctime_ns"))
_NEWER = frozenset(("num_bytes", "ctime_ns", "key"))  # facts that files of earlier versions do not have


def expected_facts(key: LatentKey, fingerprint: str) -> Facts:
    """What latents of this key are made from, with the VAE of this fingerprint."""
    facts: Facts = {
        "image": os.path.basename(key.path),
        "image_size": list(key.image_size),
        "mtime_ns": key.mtime_ns,
        "bucket": list(key.placement.bucket),
        "resized": list(key.placement.resized),
        "crop": list(key.placement.crop),
        "vae": fingerprint,
    }
    if key.num_bytes is not None:
        facts["num_bytes"] = key.num_bytes
    if key.ctime_ns is not None:
        facts["ctime_ns"] = key.ctime_ns
    # only if they are not the default, so that older files, which do not have them, stay valid
    if key.image_key != os.path.basename(key.path):
        facts["key"] = key.image_key  # part of the seed of the sample
    if key.interpolation is not None:
        facts["interpolation"] = key.interpolation
    if key.alpha_is_mask:
        facts["alpha_is_mask"] = True
    if key.masked_by is not None:
        facts["mask"] = _mask_facts(key)
    return facts


def _mask_facts(key: LatentKey) -> list[str | int]:
    """What says whether the mask of a masked image has changed; of an alpha channel, the image itself says it."""
    if key.mask_path is None:
        return ["alpha"]
    try:
        found = os.stat(key.mask_path)
    except OSError:
        return ["missing"]  # which is said when it is read
    return [os.path.basename(key.mask_path), found.st_size, found.st_mtime_ns]


def differing_facts(stored: Facts, key: LatentKey, fingerprint: str) -> frozenset[str]:
    """The names of the facts of what latents were made from that differ from `key`; none if they can be used.

    If only times differ, the content of the image decides; `has_new_times` tells this case apart.
    """
    expected = expected_facts(key, fingerprint)
    names = (stored.keys() | expected.keys()) - {_CONTENT}
    if stored.get("num_bytes") is None or key.num_bytes is None:
        names -= _NEWER
    differing = frozenset(name for name in names if stored.get(name) != expected.get(name))
    if differing and differing <= _TIMES and stored.get(_CONTENT) is not None and stored[_CONTENT] == _digest(key.path):
        return frozenset()
    return differing


def has_new_times(stored: Facts, key: LatentKey) -> bool:
    """Whether usable latents were made when the image had other times."""
    if stored.get("mtime_ns") != key.mtime_ns:
        return True
    return "ctime_ns" in stored and key.ctime_ns is not None and stored["ctime_ns"] != key.ctime_ns


def _digest(path: str) -> str | None:
    """The hash of the content of an image file; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read(), digest_size=_DIGEST_BYTES).hexdigest()
    except OSError:
        return None


def current_facts(key: LatentKey, fingerprint: str) -> Facts:
    """The same of latents that are written now, with the image's content."""
    facts = expected_facts(key, fingerprint)
    digest = _digest(key.path)
    # if the image has changed since the scan, it is unknown which content was encoded
    if digest is not None and _is_as_scanned(key):
        facts[_CONTENT] = digest
    return facts


def _is_as_scanned(key: LatentKey) -> bool:
    now = os.stat(key.path)
    pairs = ((key.mtime_ns, now.st_mtime_ns), (key.num_bytes, now.st_size), (key.ctime_ns, now.st_ctime_ns))
    return all(scanned in (None, current) for scanned, current in pairs)
