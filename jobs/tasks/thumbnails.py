"""How does this picture look smaller? Makes thumbnails of an uploaded picture, all sizes at once.

It shows a chord: a step for each size, on as many workers as there are, and a last step that gets their results. Steps
pass on the id of a file, never the picture.

A second attempt replaces the files of the first. Pictures that would decode to too much, are animated, damaged, or in
other formats than JPEG, PNG and WebP are refused before any step is sent. Thumbnails are WebP, upright and without
metadata. A picture that is already small is not enlarged.
"""

import json
import logging
from io import BytesIO
from pathlib import PurePath
from typing import Annotated, Any
from uuid import UUID

from celery import Task, chord, shared_task
from pydantic import Field, validate_call

from jobs.models import StoredFile
from jobs.toolkit import files, images

logger = logging.getLogger(__name__)

Pixels = Annotated[int, Field(ge=16, le=2048, strict=True)]


@shared_task(name="jobs.thumbnails")
@validate_call
def thumbnails(
    file: Annotated[UUID, Field(description="The id of an uploaded picture; its page shows it.")],
    sizes: Annotated[
        list[Pixels], Field(min_length=1, max_length=10, description="Pixels on the longer side of each thumbnail.")
    ] = [64, 256, 1024],  # noqa: B006 - read only
) -> None:
    """Start a step for each size. Raises `files.NoFileError`, `images.UnfitPictureError`."""
    with files.find(file).file.open("rb") as content:
        images.inspect(content)
    chord([resize.s(str(file), size) for size in sorted(set(sizes))], collect.s(str(file))).delay()


@shared_task(name="jobs.thumbnails.resize", base=Task, step_of="jobs.thumbnails")
def resize(file: str, size: int) -> dict[str, Any]:
    """Make one thumbnail. Returns its entry in the list that `collect` writes."""
    source = files.find(UUID(file))
    with source.file.open("rb") as content:
        thumbnail = images.shrink(content, size)
    name = f"{PurePath(source.name).stem}-{size}.webp"
    made = files.keep(name, BytesIO(thumbnail.content), StoredFile.Kind.IMAGE, "image/webp")
    return {"file": str(made.id), "width": thumbnail.width, "height": thumbnail.height, "bytes": made.size}


@shared_task(name="jobs.thumbnails.collect", base=Task, step_of="jobs.thumbnails")
def collect(made: list[dict[str, Any]], file: str) -> None:
    """Store the list of thumbnails as a JSON file."""
    source = files.find(UUID(file))
    manifest = json.dumps({"file": file, "name": source.name, "thumbnails": made}, ensure_ascii=False, indent=2)
    name = f"{PurePath(source.name).stem}-thumbnails.json"
    row = files.keep(name, BytesIO(manifest.encode()), StoredFile.Kind.DATA, "application/json")
    logger.info("Made %d thumbnails of %s; file %s lists them.", len(made), source.name, row.id)
