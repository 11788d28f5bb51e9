"""May this picture be decoded, and how does it look smaller? Reads untrusted JPEG, PNG and WebP files.

Its one rule: only a confined process opens a picture. It checks the size in the file's header before it decodes a
pixel, because a few kilobytes can claim gigabytes. It tries no other formats: every decoder is code that an untrusted
file can attack.

Limits: colour profiles are dropped with all other metadata. So pictures with more colours than sRGB look paler.
"""

import json
from dataclasses import dataclass
from typing import IO

from jobs.toolkit import confined

MOST_BYTES = 50_000_000  # of a file; a picture within the limit of pixels is smaller
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


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
    return Picture(*json.loads(_parsed(content)))


def shrink(content: IO[bytes], longest: int) -> Thumbnail:
    """The picture, upright, with at most `longest` pixels on its longer side. Raises `UnfitPictureError`."""
    head, _, made = _parsed(content, str(longest)).partition(b"\n")
    return Thumbnail(made, *json.loads(head))


def _parsed(content: IO[bytes], *arguments: str) -> bytes:
    content.seek(0)
    if not content.read(max(map(len, SIGNATURES))).startswith(SIGNATURES):
        raise UnfitPictureError("This file is not a JPEG, PNG or WebP picture: upload one of these.")
    content.seek(0)
    if len(whole := content.read(MOST_BYTES + 1)) > MOST_BYTES:
        raise UnfitPictureError(f"The picture has more than {MOST_BYTES:,} bytes: upload a smaller one.")
    try:
        return confined.parse("picture", whole, *arguments)
    except confined.RefusedError as error:
        raise UnfitPictureError(str(error)) from None
    except confined.ExhaustedError as error:
        raise UnfitPictureError(f"The picture cannot be decoded: {error}. Upload a smaller one.") from error
    except confined.CrashedError as error:
        raise UnfitPictureError("The picture is damaged: upload it again.") from error
