"""Recognise images that are safe to show: raster formats, identified by content, with a bounded number of pixels."""

import re
import struct

PIXELS = 25_000_000
"""Limit for one image, which needs 100 MB when drawn."""

_JPEG_SEGMENT = re.compile(rb"\xff+([\xc0-\xcf\xd8-\xfe])(..)", re.DOTALL)
_SEGMENTS = 1_000


def raster_type(data: bytes) -> str | None:
    """
    Return the media type of a PNG, JPEG, GIF or WebP of at most PIXELS, or None for anything else.

    The type that the message declares is ignored, so that SVG, which may contain scripts, cannot pass as another type.
    """
    for name, size in (("png", _png), ("gif", _gif), ("webp", _webp), ("jpeg", _jpeg)):
        try:
            found = size(data)
        except (struct.error, IndexError):
            return None
        if found:
            width, height = found
            return f"image/{name}" if 0 < width * height <= PIXELS else None
    return None


def _png(data: bytes) -> tuple[int, int] | None:
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> tuple[int, int] | None:
    if not data.startswith((b"GIF87a", b"GIF89a")):
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _webp(data: bytes) -> tuple[int, int] | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    at = 2
    for _ in range(_SEGMENTS):
        segment = _JPEG_SEGMENT.match(data, at)
        if not segment:
            return None
        if segment[1][0] in range(0xC0, 0xD0) and segment[1][0] not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack_from(">HH", data, segment.end() + 1)
            return width, height
        at = segment.end() - 2 + int.from_bytes(segment[2], "big")
    return None
