"""May this picture be decoded, and how does it look smaller? Reads JPEG, PNG and WebP files that strangers made.

Its one rule: what a file says of its size is read before any of its pixels: a few kilobytes can claim gigabytes. Other
formats are not even tried, for each decoder is code that a stranger's file gets to feed.

Limits: colour profiles are dropped with all other metadata, so pictures with more colours than sRGB look paler.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import IO

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")
PREVIEWED = "MPO"  # what Pillow calls a JPEG of a camera, with previews behind the picture
MOST_PIXELS = 40_000_000  # a decoded pixel takes four bytes, and one copy of all may be needed
QUALITY = 80  # of 100, where a smaller picture is written
ORIENTATION = 0x0112  # of EXIF; Pillow's own turning rewrites all of it, and stumbles over what is odd in the rest
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What decoders make of damaged files.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, AttributeError),
    *(LookupError, OverflowError, struct.error),
)
DEEP = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}  # modes of more than 8 bits, which Pillow would cut off


class UnfitPictureError(ValueError):
    """This is no picture that we decode. The message says what to upload instead."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What the header of a picture says of it; pixels as they are stored, before any turning."""

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
    """What kind of picture this is. Decodes nothing. Raises `UnfitPictureError`."""
    with _opened(content) as image:
        return Picture("JPEG" if image.format == PREVIEWED else str(image.format), *image.size)


def shrink(content: IO[bytes], longest: int) -> Thumbnail:
    """The picture with at most so many pixels on its longer side, the right way up. Raises `UnfitPictureError`."""
    with _opened(content) as image:
        image.thumbnail((longest, longest))  # of a JPEG it decodes no more than this needs
        upright = image.transpose(turned) if (turned := TURNS.get(image.getexif().get(ORIENTATION, 1))) else image
        small = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    written = BytesIO()
    small.save(written, "WEBP", quality=QUALITY)  # which takes no metadata along unless told to
    return Thumbnail(written.getvalue(), *small.size)


@contextmanager
def _opened(content: IO[bytes]) -> Iterator[Image.Image]:
    """The picture, with nothing but its header read. What goes wrong with it comes out as `UnfitPictureError`."""
    try:
        with Image.open(content, formats=FORMATS) as image:
            _check(image)
            yield image
    except UnfitPictureError:
        raise
    except Image.DecompressionBombError:
        raise UnfitPictureError(_too_large()) from None
    except UnidentifiedImageError:
        raise UnfitPictureError("This is no picture that we read: upload it as JPEG, PNG or WebP.") from None
    except DAMAGE as error:
        raise UnfitPictureError(f"The picture is damaged ({error}): upload it again.") from error


def _check(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise UnfitPictureError(_too_large())
    if image.format != PREVIEWED and getattr(image, "n_frames", 1) > 1:
        raise UnfitPictureError("The picture is animated: upload one that stands still.")
    if image.mode in DEEP:
        raise UnfitPictureError("The picture has more than 8 bits for each colour: upload it with 8.")


def _too_large() -> str:
    return f"The picture has more than {MOST_PIXELS:,} pixels: upload a smaller one."
