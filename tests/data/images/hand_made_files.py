"""Image files and ICC profiles made byte by byte, of kinds that no program at hand writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

# columns of sRGB's matrix for a white of D50, from IEC 61966-2-1 by Bradford's adaptation
SRGB_PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
_D50 = (0.9642, 1.0, 0.8249)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(
    path: Path, size: tuple[int, int], bits: int, colour_type: int, rows: Iterable[bytes], *before_data: bytes
) -> Path:
    """A PNG file from the bytes of its rows, with chunks between its header and its data."""
    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = (chunk(b"IHDR", header), *before_data, chunk(b"IDAT", data), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def matrix_profile(primaries: Sequence[Sequence[float]], curve: Sequence[float]) -> bytes:
    """An ICC profile of RGB (three primaries, as XYZ) or of grey (none), with a curve from 0 and 1 to 0 and 1."""
    trc = struct.pack(">4sII", b"curv", 0, len(curve)) + b"".join(struct.pack(">H", round(v * 65535)) for v in curve)
    tags = {b"wtpt": _xyz(_D50)}
    if primaries:
        for name, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
            tags[name + b"XYZ"], tags[name + b"TRC"] = _xyz(primary), trc
    else:
        tags[b"kTRC"] = trc
    return _profile(b"mntr", b"RGB " if primaries else b"GRAY", b"XYZ ", tags)


def ink_profile(lab_of_corners: np.ndarray) -> bytes:
    """An ICC profile of CMYK: Lab, as three bytes, for each of the 2 x 2 x 2 x 2 corners of the ink cube."""
    identity = struct.pack(">9i", *(65536 * (row == column) for row in range(3) for column in range(3)))
    ramp = bytes(range(256))
    table = struct.pack(">4sIBBBB", b"mft1", 0, 4, 3, 2, 0) + identity
    table += ramp * 4 + lab_of_corners.astype(np.uint8).tobytes() + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(_D50), b"A2B0": table})


def _xyz(values: Sequence[float]) -> bytes:
    return struct.pack(">4sI3i", b"XYZ ", 0, *(round(value * 65536) for value in values))


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"made by hand\0"
    tags = {
        b"desc": struct.pack(">4sII", b"desc", 0, len(text)) + text + bytes(78),
        b"cprt": struct.pack(">4sI", b"text", 0) + text,
        **tags,
    }
    offset, entries, contents = 132 + 12 * len(tags), [], []
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        entries.append(struct.pack(">4sII", name, offset, len(content)))
        contents.append(content)
        offset += len(content)
    header = struct.pack(">I4sI4s4s4s12s4s", offset, b"", 0x02100000, device, space, connection, b"", b"acsp")
    header += bytes(28) + _xyz(_D50)[8:]
    body = struct.pack(">I", len(tags)) + b"".join(entries) + b"".join(contents)
    return header.ljust(128, b"\0") + body
