"""May this picture be decoded, and how does it look smaller? Reads untrusted JPEG, PNG and WebP files.

Its one rule: the size in the file's header is checked before any pixel is decoded, because a few kilobytes can claim
gigabytes. Other formats are never tried. Every decoder is code that an untrusted file can attack.

Limits: colour profiles are dropped with all other metadata. So pictures with more colours than sRGB look paler.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import IO

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")
PREVIEWED = "MPO"  # Pillow's name for a camera's JPEG, with previews behind the picture
MOST_PIXELS = 40_000_000  # a decoded pixel takes four bytes, and one full copy may be needed
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
# The exceptions that decoders raise for damaged files.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, AttributeError),
    *(LookupError, OverflowError, struct.error),
)
DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}  # modes of more than 8 bits per colour, which Pillow would clip


class UnfitPictureError(ValueError):
    """This file cannot be decoded here. The message says what to upload instead."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The header of a picture: its format, and its size in pixels as stored, before any rotation."""

    format: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A smaller picture, as the bytes of a WebP file."""

    content: bytes
    width: int
    height: int


def inspect(content: IO[bytes]) -> Picture:
    """Read the header of a picture and decode nothing. Raises `UnfitPictureError`."""
    with _opened(content) as image:
        return Picture("JPEG" if image.format == PREVIEWED else str(image.format), *image.size)


def shrink(content: IO[bytes], longest: int) -> Thumbnail:
    """The picture, upright, with at most `longest` pixels on its longer side. Raises `UnfitPictureError`."""
    with _opened(content) as image:
        image.thumbnail((longest, longest))  # decodes a JPEG only as far as this size needs
        upright = image.transpose(turned) if (turned := TURNS.get(image.getexif().get(ORIENTATION, 1))) else image
        small = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    written = BytesIO()
    small.save(written, "WEBP", quality=QUALITY)  # writes no metadata by default
    return Thumbnail(written.getvalue(), *small.size)


@contextmanager
def _opened(content: IO[bytes]) -> Iterator[Image.Image]:
    """The picture, only its header read. Errors in the `with` block become `UnfitPictureError`, too."""
    try:
        with Image.open(content, formats=FORMATS) as image:
            _check(image)
            yield image
    except UnfitPictureError:
        raise
    except Image.DecompressionBombError:
        raise UnfitPictureError(_too_large()) from None
    except UnidentifiedImageError:
        raise UnfitPictureError("This file is not a JPEG, PNG or WebP picture: upload one of these.") from None
    except DAMAGE as error:
        raise UnfitPictureError(f"The picture is damaged ({error}): upload it again.") from error


def _check(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise UnfitPictureError(_too_large())
    if image.format != PREVIEWED and getattr(image, "n_frames", 1) > 1:
        raise UnfitPictureError("The picture is animated: upload a still one.")
    if image.mode in DEEP:
        raise UnfitPictureError("The picture has more than 8 bits per colour: upload it with 8.")


def _too_large() -> str:
    return f"The picture has more than {MOST_PIXELS:,} pixels: upload a smaller one."
