"""How large is this JPEG, PNG or WebP picture, and how does it look smaller?

Its one rule: it counts pixels and frames in the header before it decodes anything. For WebP it reads the bytes of the
header itself, because Pillow's reader allocates the whole canvas to find its size.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import Image, UnidentifiedImageError

# Pixels, by format. Decoding takes at most 320 MB: 4 bytes for a pixel and as many for a copy, or for a progressive
# JPEG's coefficients. WebP's decoder holds four copies.
MOST_PIXELS = {"JPEG": 40_000_000, "PNG": 40_000_000, "WEBP": 20_000_000}
FORMATS = tuple(MOST_PIXELS)
PREVIEWED = "MPO"  # Pillow's name for a camera's JPEG, with previews behind the picture
QUALITY = 80  # of 100, for thumbnails
ORIENTATION = 0x0112  # an EXIF tag; Pillow's own rotation rewrites all of EXIF, and fails if another tag is odd
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}  # modes of more than 8 bits per colour, which Pillow would clip
ANIMATED = "The picture is animated: upload a still one."


class Refused(ValueError):  # noqa: N818 - describes the picture
    """The picture is not fit for decoding. The message is a sentence."""


def read(content: bytes, longest: str = "") -> bytes:
    """The header as JSON, or a line of JSON with the new size and then a WebP file. Raises Refused."""
    with _opened(content) as image:
        if not longest:
            return json.dumps([_format(image), *image.size]).encode()
        small = _shrunk(image, int(longest))
    written = BytesIO()
    small.save(written, "WEBP", quality=QUALITY)  # writes no metadata by default
    return json.dumps(small.size).encode() + b"\n" + written.getvalue()


def _shrunk(image: Image.Image, longest: int) -> Image.Image:
    image.thumbnail((longest, longest))  # decodes a JPEG only as far as this size needs
    upright = image.transpose(turned) if (turned := TURNS.get(image.getexif().get(ORIENTATION, 1))) else image
    return upright.convert("RGBA" if upright.has_transparency_data else "RGB")


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """The picture, before its pixels are read. Raises Refused, and errors of every kind for damaged files."""
    _check_webp(content[:30])
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refused(_too_large(*FORMATS)) from None
    except UnidentifiedImageError:
        raise Refused("This file is not a JPEG, PNG or WebP picture, or it is damaged: upload another one.") from None
    with image:
        _check(image)
        yield image


def _check(image: Image.Image) -> None:
    _check_size(_format(image), *image.size)
    if image.format != PREVIEWED and getattr(image, "n_frames", 1) > 1:
        raise Refused(ANIMATED)
    if image.mode in DEEP:
        raise Refused("The picture has more than 8 bits per colour: upload it with 8.")


def _format(image: Image.Image) -> str:
    return "JPEG" if image.format == PREVIEWED else str(image.format)


def _check_size(form: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS[form]:
        raise Refused(_too_large(form))


def _check_webp(head: bytes) -> None:
    """Check the size, by the layouts of RFC 9649: extended, lossless or lossy."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return
    kind, bits = head[12:16], int.from_bytes(head[21:25], "little")
    if kind == b"VP8X":
        _check_size("WEBP", *(int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27)))
        if head[20] & 2:
            raise Refused(ANIMATED)
    elif kind == b"VP8L":
        _check_size("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    else:
        _check_size("WEBP", *(int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28)))


def _too_large(*forms: str) -> str:
    return f"The picture has more than {max(MOST_PIXELS[form] for form in forms):,} pixels: upload a smaller one."
