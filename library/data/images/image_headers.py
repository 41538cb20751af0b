"""Image sizes from the headers of common image files, many times faster than opening them with Pillow.

Anything unusual (corrupt files; XMP data that can rotate an image) is left to Pillow: a size that is returned here is
always the size that Pillow gives.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from library.data.records import Size

HEAD_LENGTH = 4096  # bytes that most headers fit into

Read = Callable[[int, int], bytes]  # (offset, length) -> the bytes there, fewer where the file ends

_MOST_PIXELS = 2**26  # above, Pillow may reject the image
_LONGEST_CHUNK = 2**18  # of a PNG header, such as the parameters that image generators write
_SIDEWAYS = frozenset((5, 6, 7, 8))  # orientations that swap width and height: EXIF 2.32, table 4, 0x0112


def size_from_head(head: bytes, read: Read | None = None) -> Size | None:
    """(width, height) after EXIF orientation of a PNG, JPEG, WebP or BMP file that starts with `head`.

    `read` reads what follows the head. None if Pillow must open the file.
    """
    read = read or (lambda offset, length: head[offset : offset + length])
    for signature, find in _READERS:
        if head.startswith(signature):
            try:
                size = find(read)
            except (struct.error, IndexError):  # the header is longer than what can be read, or corrupt
                return None
            if size is None or min(size) < 1 or size[0] * size[1] > _MOST_PIXELS:
                return None
            return size
    return None


def _turned(size: Size, orientation: int) -> Size:
    return (size[1], size[0]) if orientation in _SIDEWAYS else size


# PNG, third edition: 11.2.1 (bits of a sample for each colour type) and 11.3 (least lengths of chunks)
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_CHUNKS = {
    b"PLTE": 0, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"sBIT": 0, b"bKGD": 0, b"hIST": 0, b"pHYs": 9, b"tIME": 0,
    b"sPLT": 0, b"tEXt": 0, b"eXIf": 0,
}  # fmt: skip
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def _png_size(read: Read) -> Size | None:
    length, kind, width, height, bits, colours, *methods, crc = struct.unpack(">I4sIIBBBBBI", read(8, 25))
    if (length, kind) != (13, b"IHDR") or crc != zlib.crc32(read(12, 17)):
        return None
    if bits not in _PNG_BITS.get(colours, ()) or methods[:2] != [0, 0] or methods[2] > 1:
        return None
    offset, orientation = 33, None
    while True:
        length, kind = struct.unpack(">I4s", read(offset, 8))
        if kind == b"IDAT":
            return _turned((width, height), orientation or 1)
        if not _PNG_CHUNKS.get(kind, length + 1) <= length <= _LONGEST_CHUNK:
            return None
        chunk = read(offset + 4, length + 8)
        if zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
            return None
        if kind == b"eXIf":
            if orientation is not None:
                return None
            orientation = exif_orientation(chunk[4:-4], length)
            if orientation is None:
                return None
        elif kind == b"tEXt" and _names_orientation(chunk[4:-4].partition(b"\0")[0]):
            return None
        offset += 12 + length


def _names_orientation(keyword: bytes) -> bool:
    """Whether a text of this keyword may hold EXIF or XMP data."""
    return b"xif" in keyword.lower() or b"xmp" in keyword.lower()


_SEGMENT_HEAD = struct.Struct(">BBH")
_JPEG_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive
_JPEG_FILL = 0xFF
_JPEG_SCAN = 0xDA
_JPEG_END = b"\xff\xd9"
_EXIF_MARK = b"Exif\0\0"
_XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0"
_FIRST_READ_OF_EXIF = 2048  # mostly contains its first directory; thumbnails come after it


def _jpeg_size(read: Read) -> Size | None:
    """ISO/IEC 10918-1, annex B: walks the segments up to the first scan."""
    offset, size, orientation = 2, None, None
    while True:
        start, marker, length = _SEGMENT_HEAD.unpack(read(offset, 4))
        if start != 0xFF or length < 2:
            return None
        if marker == _JPEG_FILL:
            offset += 1
            continue
        if marker == _JPEG_SCAN:
            is_whole = len(read(offset + 4, length - 2)) == length - 2
            return _turned(size, orientation or 1) if size and is_whole else None
        if marker in _JPEG_FRAMES and size is None:
            bits, height, width, num_layers = struct.unpack(">BHHB", read(offset + 4, 6))
            if bits != 8 or num_layers not in (1, 3, 4) or length != 8 + 3 * num_layers:
                return None
            size = (width, height)
        elif marker == 0xE1 and orientation is None and read(offset + 4, 6) == _EXIF_MARK:
            exif = read(offset + 10, min(length - 8, _FIRST_READ_OF_EXIF))
            orientation = exif_orientation(exif, length - 8)
            if orientation is None:
                return None
        elif marker not in _JPEG_SEGMENTS or not _JPEG_SEGMENTS[marker](read, offset + 4, length - 2):
            return None
        offset += 2 + length


def _is_anything(read: Read, offset: int, length: int) -> bool:
    return True


def _are_tables(read: Read, offset: int, length: int) -> bool:
    """Whether a segment holds whole quantisation tables."""
    data, at = read(offset, length), 0
    while at < len(data):
        at += 129 if data[at] >> 4 else 65
    return at == length


def _starts_otherwise(*marks: bytes, least: int = 0) -> Callable[[Read, int, int], bool]:
    """For application segments: whether they do not start with one of `marks`, or have the `least` length."""

    def check(read: Read, offset: int, length: int) -> bool:
        return not read(offset, min(length, 32)).startswith(marks) or 0 < least <= length

    return check


def _cannot_turn(read: Read, offset: int, length: int) -> bool:
    start = read(offset, min(length, 32))
    if start.startswith(_XMP_MARK):
        return b"tiff:Orientation" not in read(offset, length)
    return not start.startswith(_EXIF_MARK)  # a second one


_JPEG_SEGMENTS: dict[int, Callable[[Read, int, int], bool]] = {
    **dict.fromkeys((0xC4, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF), _is_anything),
    0xDB: _are_tables,
    0xE0: _starts_otherwise(b"JFIF", least=7),
    0xE1: _cannot_turn,
    0xE2: _starts_otherwise(b"MPF\0", b"FPXR\0"),  # several images in one file
    0xED: _starts_otherwise(b"Photoshop 3.0\0"),
    0xEE: _starts_otherwise(b"Adobe", least=7),
}

_EXIF_ORIENTATION = 0x0112
_EXIF_SHORT = 3
_EXIF_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes: TIFF 6.0, section 2


def exif_orientation(data: bytes, length: int) -> int | None:
    """The orientation in EXIF data of `length` bytes, 1 if they have none; `data` may be only their start.

    None if they are corrupt, or their directory is not within `data`.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(order + "I", data, 4)
        (num_entries,) = struct.unpack_from(order + "H", data, directory)
        found, elsewhere = None, 0
        for number in range(num_entries):
            tag, kind, count = struct.unpack_from(order + "HHI", data, directory + 2 + 12 * number)
            (value,) = struct.unpack_from(order + "I", data, directory + 10 + 12 * number)
            num_bytes = _EXIF_UNITS.get(kind, length + 1) * count
            if num_bytes > 4:
                elsewhere += num_bytes
                if elsewhere > length or value + num_bytes > length:
                    return None
            if tag == _EXIF_ORIENTATION:
                if found is not None or (kind, count) != (_EXIF_SHORT, 1):
                    return None
                (found,) = struct.unpack_from(order + "H", data, directory + 10 + 12 * number)
    except struct.error:
        return None
    return found or 1


_WEBP_TURNS_OR_UNKNOWN = 0b11001101  # EXIF and XMP data, reserved bits


def _webp_size(read: Read) -> Size | None:
    """RFC 9649, 2.4 to 2.7."""
    riff_length, mark, kind, length = struct.unpack("<I4s4sI", read(4, 16))
    if mark != b"WEBP" or kind not in _WEBP_READERS or length + 12 > riff_length:
        return None
    return _WEBP_READERS[kind](read(20, 10), length)


def _webp_lossy_size(data: bytes, length: int) -> Size | None:
    # RFC 6386, 9.1: key frame, version, to be shown, length of the first partition; start code; sizes
    tag = int.from_bytes(data[:3], "little")
    is_plain = not tag & 1 and tag >> 1 & 7 <= 3 and tag >> 4 & 1 and tag >> 5 < length
    if not is_plain or data[3:6] != b"\x9d\x01\x2a":
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    return width & 0x3FFF, height & 0x3FFF


def _webp_lossless_size(data: bytes, length: int) -> Size | None:
    signature, packed = struct.unpack_from("<BI", data)
    if signature != 0x2F or packed >> 29 or length < 5:
        return None
    return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1


def _webp_extended_size(data: bytes, length: int) -> Size | None:
    if data[0] & _WEBP_TURNS_OR_UNKNOWN or len(data) < 10 or length != 10:
        return None
    return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1


_WEBP_READERS = {b"VP8 ": _webp_lossy_size, b"VP8L": _webp_lossless_size, b"VP8X": _webp_extended_size}


def _bmp_size(read: Read) -> Size | None:
    header, width, height, planes, bits, compression, *_, num_colours, _ = struct.unpack("<IiiHHIIiiII", read(14, 40))
    if header != 40 or planes != 1 or bits not in (1, 4, 8, 24, 32) or compression != 0:
        return None
    palette = 0 if bits > 8 else 4 * (num_colours or 1 << bits)
    if palette > 4 << bits or len(read(54, palette)) < palette:
        return None
    return width, abs(height)  # rows from the top have a negative height


_READERS = (
    (b"\x89PNG\r\n\x1a\n", _png_size),
    (b"\xff\xd8\xff", _jpeg_size),
    (b"RIFF", _webp_size),
    (b"BM", _bmp_size),
)


def seems_truncated(head: bytes, tail: bytes, num_bytes: int) -> bool:
    """Whether a file of `num_bytes` with this head and these last 12 bytes lacks the end of its format.

    Not a proof: other data may follow the image, which does no harm.
    """
    if head.startswith(b"\x89PNG"):
        return tail != _PNG_END
    if head.startswith(b"\xff\xd8\xff"):
        return not tail.endswith(_JPEG_END)
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 > num_bytes
    return False
