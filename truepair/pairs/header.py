"""Width and height of an encoded image from its first bytes, with cheap checks that its end is there."""

from struct import unpack_from

from truepair.pairs.image import MAX_PIXELS, ImageError, probe

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what Pillow surely decodes


def image_size(data: bytes, *, verify: bool = False, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of an image file.

    A PNG, JPEG or WebP that is whole by its own header and last bytes is judged from these alone (a few microseconds).
    Anything else (other formats, odd headers, a missing end) is decoded in full by Pillow, which decides; `verify`
    decodes every image, and so also finds damage in the middle.

    Raises:
        ImageError: "empty image", "unreadable image" or "bomb-sized image" (more than `max_pixels`).
    """
    size = None if verify else _from_header(data)
    if size is None:
        return probe(data, full=True, max_pixels=max_pixels)
    if size[0] * size[1] > max_pixels:
        raise ImageError("bomb-sized image", f"{size[0]}x{size[1]} > {max_pixels} pixels")
    return size


def _from_header(data: bytes) -> tuple[int, int] | None:
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:16] == _PNG_START:
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return None


def _png(data: bytes) -> tuple[int, int] | None:
    if len(data) < 57 or data[-8:] != _PNG_END or b"IDAT" not in data:
        return None
    width, height, depth, colour = unpack_from(">IIBB", data, 16)
    return (width, height) if width and height and depth in (1, 2, 4, 8, 16) and colour in (0, 2, 3, 4, 6) else None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    if data[-2:] != b"\xff\xd9":
        return None
    at, end = 2, len(data) - 10
    while at < end and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:
            at += 1
        elif marker in _JPEG_FRAMES:
            precision, height, width, components = unpack_from(">BHHB", data, at + 4)
            return (width, height) if width and height and precision == 8 and components in (1, 3, 4) else None
        elif (0xC3 <= marker <= 0xDA and marker not in (0xC4, 0xCC)) or length < 2:
            return None
        else:
            at += 2 + length
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30 or unpack_from("<I", data, 4)[0] + 8 > len(data):
        return None
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = unpack_from("<HH", data, 26)
        width, height = width & 0x3FFF, height & 0x3FFF
        return (width, height) if width and height else None
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    return None
