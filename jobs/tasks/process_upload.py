"""Which kind of file was uploaded? Reads a file to its end and describes its content.

It shows long work that a user waits for: the upload returns at once with the id of a run (`jobs.toolkit.take_upload`),
and the client asks for the run's state and progress until it ends. The file is read in pieces, so its size costs time
but no memory. The findings are the result of the run, kept for an hour, and a line of its log.

The content decides the kind of a file, never its name. Limits: text is UTF-8, or UTF-16 with its mark. Text in older
encodings counts as data. A table is text whose first lines all have the same number of cells.
"""

import codecs
import csv
import hashlib
import io
import logging
from functools import partial
from typing import IO, Annotated, Any
from uuid import UUID

from celery import shared_task
from pydantic import Field, validate_call

from jobs.toolkit import files, images
from jobs.toolkit.current import progress

PIECE = 1_000_000  # bytes read at a time
SAMPLE = 65_536  # characters that are searched for a table
DELIMITERS = ",;\t|"
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SIGNATURES = {b"%PDF-": "PDF", b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip"}

logger = logging.getLogger(__name__)


@shared_task(name="jobs.process_upload", ignore_result=False)
@validate_call
def process_upload(
    file: Annotated[UUID, Field(description="The id of an uploaded file; its page shows it.")],
) -> dict[str, Any]:
    """Describe the file. Returns kind, bytes and SHA-256, and more for texts and pictures.

    Raises `jobs.toolkit.files.NoFileError`.
    """
    row = files.find(file)
    with row.file.open("rb") as content:
        found = {"name": row.name, **_read(content, row.size or 0), **_pixels(content)}
    logger.info("%s", ", ".join(f"{name}: {value}" for name, value in found.items()))
    return found


def _read(content: IO[bytes], size: int) -> dict[str, Any]:
    """Describe the file in one reading."""
    digest, done, text = hashlib.sha256(), 0, _Text()
    start = b""
    for piece in iter(partial(content.read, PIECE), b""):
        start = start or piece[:8]
        digest.update(piece)
        text.take(piece)
        done += len(piece)
        progress(done, size, "reading")
    kind = next((SIGNATURES[signature] for signature in SIGNATURES if start.startswith(signature)), "")
    return {"kind": kind or "data", "bytes": done, "sha256": digest.hexdigest()} | ({} if kind else text.found())


def _pixels(content: IO[bytes]) -> dict[str, Any]:
    """Format and size of a picture; empty for any other file, and for pictures that we do not decode."""
    content.seek(0)
    try:
        picture = images.inspect(content)
    except images.UnfitPictureError:
        return {}
    return {"kind": picture.format, "width": picture.width, "height": picture.height}


class _Text:
    """Decodes pieces of bytes as text, until one proves that the file is not text."""

    def __init__(self) -> None:
        self._decoder: codecs.IncrementalDecoder | None = None
        self._encoding, self._start = "", ""
        self._lines, self._ends_in_one = 0, True
        self._is_text = True

    def take(self, piece: bytes, final: bool = False) -> None:
        if not self._is_text:
            return
        if self._decoder is None:
            self._encoding = next((name for mark, name in MARKS.items() if piece.startswith(mark)), "utf-8")
            self._decoder = codecs.getincrementaldecoder(self._encoding)()
        try:
            text = self._decoder.decode(piece, final)
        except UnicodeDecodeError:
            text = "\0"
        self._is_text = "\0" not in text
        self._start += text[: SAMPLE - len(self._start)]
        self._lines += text.count("\n")
        self._ends_in_one = text.endswith("\n") if text else self._ends_in_one

    def found(self) -> dict[str, Any]:
        """The findings, after the last piece; empty if the file is not text."""
        self.take(b"", final=True)
        if not self._is_text:
            return {}
        lines = self._lines + (not self._ends_in_one)
        columns = _columns(self._start)
        table = {"kind": "table", "columns": columns} if columns > 1 else {"kind": "text"}
        return {**table, "lines": lines, "encoding": self._encoding}


def _columns(start: str) -> int:
    """The number of columns of a table that begins like this; 1 if it is not a table."""
    whole_lines = start.rpartition("\n")[0] if len(start) == SAMPLE else start
    header = start.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    try:
        widths = {len(row) for row in csv.reader(io.StringIO(whole_lines), delimiter=delimiter) if row}
    except csv.Error:
        return 1
    return widths.pop() if len(widths) == 1 else 1
