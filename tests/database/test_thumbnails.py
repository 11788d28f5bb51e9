"""Thumbnails have the right size, are upright and hold only pixels; unfit pictures are not decoded."""

import base64
import io
import json
import random
import re
import struct
import zlib
from typing import Any
from uuid import UUID, uuid4

import pytest
from PIL import ExifTags, Image
from pydantic import ValidationError

from jobs.models import StoredFile
from jobs.tasks.thumbnails import collect, resize, thumbnails
from jobs.toolkit import confined, files, images
from jobs.toolkit.parsers.picture import FORMATS, MOST_PIXELS
from tests.forking import forks
from tests.memory import appetite

RED, BLUE = (250, 10, 10), (10, 10, 250)


def picture(size: tuple[int, int] = (300, 150), form: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """A picture whose left half is red and whose right half is blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    written = io.BytesIO()
    image.convert(mode).save(written, form, **options)
    return written.getvalue()


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A file that claims to be a picture of that size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animation(form: str) -> bytes:
    frames, written = [Image.new("RGB", (20, 20), colour) for colour in (RED, BLUE)], io.BytesIO()
    frames[0].save(written, form, save_all=True, append_images=frames[1:])
    return written.getvalue()


def keep(content: bytes, name: str = "photo.jpg") -> str:
    return str(files.keep(name, io.BytesIO(content), StoredFile.Kind.UPLOAD).id)


def shrunk(content: bytes, longest: int = 64) -> Image.Image:
    return Image.open(io.BytesIO(images.shrink(io.BytesIO(content), longest).content))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("longest", "size"), [(64, (64, 32)), (1024, (300, 150))])
def test_it_makes_a_picture_smaller_and_never_larger(form, longest, size):
    made = shrunk(picture(form=form), longest)
    assert (made.format, made.size) == ("WEBP", size)


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "P"), ("PNG", "L"), ("PNG", "1"), ("PNG", "RGBA"), ("JPEG", "CMYK")]
)
def test_it_reads_pictures_of_every_common_mode(form, mode):
    assert shrunk(picture(form=form, mode=mode)).size == (64, 32)


def test_it_keeps_transparency():
    written = io.BytesIO()
    Image.new("RGBA", (100, 100), (0, 0, 0, 0)).save(written, "PNG")
    assert shrunk(written.getvalue()).getpixel((30, 30))[3] == 0


def test_it_turns_a_picture_upright_and_drops_all_other_metadata():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "s3cret"  # stored lying on its left side
    content = picture(exif=exif, comment=b"s3cret", icc_profile=b"s3cret" * 30)
    made = images.shrink(io.BytesIO(content), 64)
    assert (made.width, made.height) == (32, 64)
    red, _, blue = shrunk(content).getpixel((16, 5))
    assert red > blue
    assert b"s3cret" not in made.content


@pytest.mark.parametrize(
    "tag", [ExifTags.Base.XResolution, ExifTags.Base.ResolutionUnit, ExifTags.Base.YCbCrPositioning]
)
def test_it_turns_a_picture_upright_when_another_tag_is_odd(tag):
    lying, text = struct.pack("<HHIHxx", ExifTags.Base.Orientation, 3, 1, 6), struct.pack("<HHI4s", tag, 2, 3, b"72")
    exif = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 2) + lying + text + bytes(4)
    made = images.shrink(io.BytesIO(picture(exif=exif)), 64)
    assert (made.width, made.height) == (32, 64)


def test_it_reads_a_camera_picture_with_previews():
    written = io.BytesIO()
    Image.new("RGB", (200, 100)).save(written, "MPO", save_all=True, append_images=[Image.new("RGB", (20, 10))])
    assert images.inspect(written) == images.Picture("JPEG", 200, 100)
    assert shrunk(written.getvalue()).size == (64, 32)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (png(20_000, 20_000), "more than 40,000,000 pixels"),
        (png(6_400, 6_400), "more than 40,000,000 pixels"),
        (animation("WEBP"), "animated"),
        (animation("PNG"), "animated"),
        (animation("GIF"), "not a JPEG, PNG or WebP picture"),
        (picture(form="TIFF"), "not a JPEG, PNG or WebP picture"),
        (picture(form="PNG", mode="I;16"), "more than 8 bits"),
        (picture()[:30], "damaged|not a JPEG, PNG or WebP picture"),
        (b"", "not a JPEG, PNG or WebP picture"),
        (b"%PDF-1.7", "not a JPEG, PNG or WebP picture"),
    ],
)
def test_it_refuses_unfit_pictures_by_their_header(content, sentence):
    for read in (images.inspect, lambda content: images.shrink(content, 64)):
        with pytest.raises(images.UnfitPictureError, match=sentence):
            read(io.BytesIO(content))


def still(form: str, width: int, height: int) -> bytes:
    """A picture of that size in a few kilobytes."""
    written = io.BytesIO()
    Image.new("RGB", (width, height)).save(written, form, lossless=True)
    return written.getvalue()


def extended_webp(width: int, height: int, flags: int = 0) -> bytes:
    """The header of a WebP file that claims a canvas of that size."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + canvas
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


# A whole WebP file of 16,383 x 16,383 pixels, whose decoder would take two gigabytes to say its size.
LARGEST_WEBP = zlib.decompress(
    base64.b85decode(
        b"c-rm8F$#iU7=Yn_5FEudhq5HvTpS#PNKz0C#6d^#D$+fqQ#499sM$j}Tljx<jo@7#o-#|*=%7@c#6?wvx&OPb2eHiObsyZMjoecw_i?v<tsdS*q"
        b";c$}SDQ?W6`zgwQRZn7{Q&>~00000000000000000000fPZ4Gz8M8fq5"
    )
)


@forks
@pytest.mark.parametrize(
    "content",
    [
        png(9_000, 9_000, b"\0" * (9_000 * 3 + 1) * 9_000),
        still("WEBP", 6_000, 6_000),
        picture((6_000, 6_000), "WEBP", quality=1),
        extended_webp(16_384, 16_384),
        LARGEST_WEBP,
    ],
)
@pytest.mark.parametrize("read", [images.inspect, lambda content: images.shrink(content, 64)])
def test_it_decodes_nothing_of_a_bomb(content, read):
    assert len(content) < 300_000
    assert appetite(lambda: read(io.BytesIO(content))) < 30
    with pytest.raises(images.UnfitPictureError, match=r"more than [24]0,000,000 pixels"):
        read(io.BytesIO(content))


@pytest.mark.parametrize(
    "content",
    [
        *(still(form, pixels // 4_000, 4_000) for form, pixels in MOST_PIXELS.items()),
        picture((6_300, 6_300), "PNG", "RGBA"),
        picture((6_300, 6_300), "JPEG", "CMYK", progressive=True),
    ],
)
def test_it_decodes_the_largest_pictures_within_its_limits(content):
    made = images.shrink(io.BytesIO(content), 64)
    assert max(made.width, made.height) == 64


@pytest.mark.parametrize(("limit", "value"), [("MEGABYTES", 200), ("SECONDS", 1)])
def test_it_says_so_when_a_picture_takes_too_much(monkeypatch, limit, value):
    monkeypatch.setattr(confined, limit, value)
    header = picture((10, 10))
    content = {
        "MEGABYTES": still("WEBP", 4_000, 4_000),
        "SECONDS": header[:2] + b"\xff\xe5\0\2" * 9_000_000 + header[2:],
    }
    with pytest.raises(images.UnfitPictureError, match=r"cannot be decoded: .* more than .* Upload a smaller one"):
        images.shrink(io.BytesIO(content[limit]), 64)


def test_it_refuses_a_file_of_too_many_bytes(monkeypatch):
    monkeypatch.setattr(images, "MOST_BYTES", 100)
    with pytest.raises(images.UnfitPictureError, match="more than 100 bytes"):
        images.shrink(io.BytesIO(picture()), 64)


def without_palette() -> bytes:
    whole = picture(form="PNG", mode="P")
    start = whole.index(b"PLTE") - 4
    return whole[:start] + whole[start + 12 + struct.unpack(">I", whole[start : start + 4])[0] :]


def mutants() -> list[bytes]:
    """Pictures of every format and common mode, cut or with some bytes replaced, by a fixed seed."""
    chance = random.Random(14)
    wholes = [picture((90, 60), form) for form in FORMATS]
    wholes += [picture((90, 60), "PNG", mode) for mode in ("P", "1", "LA")] + [animation("WEBP"), without_palette()]
    made = []
    for whole in wholes:
        made.append(whole[: chance.randrange(12, len(whole))])
        for _ in range(2):
            broken = bytearray(whole)
            for at in chance.choices(range(8, min(len(whole), 400)), k=4):
                broken[at] = chance.choice([0, 255, chance.randrange(256)])
            made.append(bytes(broken))
    return made


def sentence_for(content: bytes) -> str:
    """Why there is no thumbnail of it; empty if there is one."""
    try:
        images.shrink(io.BytesIO(content), 16)
    except images.UnfitPictureError as error:
        return str(error)
    return ""


def test_it_gives_a_thumbnail_or_a_sentence_for_every_damaged_picture():
    assert sentence_for(without_palette()) == "The picture is damaged: upload it again."
    sentences = [sentence for content in mutants() if (sentence := sentence_for(content))]
    assert len(sentences) > 10
    for sentence in sentences:
        assert re.search(r": upload (it again|another one|one of these|a smaller one|a still one)", sentence), sentence


@pytest.mark.parametrize("form", FORMATS)
def test_it_says_that_a_picture_is_damaged_when_its_end_is_missing(form):
    content = picture((2_000, 1_000), form)
    with pytest.raises(images.UnfitPictureError, match="damaged"):
        images.shrink(io.BytesIO(content[: len(content) // 2]), 64)


@pytest.mark.django_db
def test_it_lists_the_thumbnails_it_made():
    file = keep(picture(), "my photo.jpg")
    collect([resize(file, size) for size in (64, 256)], file)
    manifest = StoredFile.objects.get(name="my photo-thumbnails.json")
    with manifest.file.open("rb") as content:
        listed = json.load(content)
    assert (listed["file"], listed["name"]) == (file, "my photo.jpg")
    assert [(each["width"], each["height"]) for each in listed["thumbnails"]] == [(64, 32), (256, 128)]
    made = [files.find(UUID(each["file"])) for each in listed["thumbnails"]]
    assert [(row.name, row.kind, row.content_type) for row in made] == [
        ("my photo-64.webp", "image", "image/webp"),
        ("my photo-256.webp", "image", "image/webp"),
    ]
    assert [row.size for row in made] == [each["bytes"] for each in listed["thumbnails"]]


@pytest.mark.django_db
@pytest.mark.parametrize("content", [png(20_000, 20_000), b"no picture"])
def test_it_starts_no_step_when_the_picture_is_refused(content, redis):
    with pytest.raises(images.UnfitPictureError):
        thumbnails(keep(content))
    assert redis.llen("celery") == 0


@pytest.mark.django_db
def test_it_says_so_when_the_file_is_gone():
    with pytest.raises(files.NoFileError, match="Upload or create it again"):
        thumbnails(str(uuid4()))


@pytest.mark.parametrize("sizes", [[], [15], [2049], [64.5], ["64"], [64] * 11])
def test_it_refuses_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValidationError):
        thumbnails(str(uuid4()), sizes)
