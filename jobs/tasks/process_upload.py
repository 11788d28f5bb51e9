"""What did somebody upload? Reads a file to its end and says what is in it.

It teaches the way of long work that a person waits for: the upload is answered at once with the id of a run
(`jobs.toolkit.take_upload`), whose state and progress can be asked for until it is over. The file is read in pieces, so
its size costs time and no memory. What was found is the result of the run, kept for an hour, and a line of its log.

What a file is decides its content, never its name. Limits: text is UTF-8, or UTF-16 with its mark; what is written in
older encodings counts as data. A table is text whose first lines all have the same number of cells.
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
SAMPLE = 65_536  # characters in which a table is looked for
DELIMITERS = ",;\t|"
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SIGNATURES = {b"%PDF-": "PDF", b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip"}

logger = logging.getLogger(__name__)


@shared_task(name="jobs.process_upload", ignore_result=False)
@validate_call
def process_upload(
    file: Annotated[UUID, Field(description="The id of an uploaded file: its page shows it.")],
) -> dict[str, Any]:
    """Say what the file is; returns kind, bytes and SHA-256, and more of texts and pictures.

    Raises `jobs.toolkit.files.NoFileError`.
    """
    row = files.find(file)
    with row.file.open("rb") as content:
        found = {"name": row.name, **_read(content, row.size or 0), **_pixels(content)}
    logger.info("%s", ", ".join(f"{name}: {value}" for name, value in found.items()))
    return found


def _read(content: IO[bytes], size: int) -> dict[str, Any]:
    """All that one reading tells."""
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
    """The size of a picture; nothing for what is none, or none that we would decode."""
    content.seek(0)
    try:
        picture = images.inspect(content)
    except images.UnfitPictureError:
        return {}
    return {"kind": picture.format, "width": picture.width, "height": picture.height}


class _Text:
    """A text that comes in pieces of bytes, until they turn out to be none."""

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
        """What it was, once all of it was taken; nothing where it was no text."""
        self.take(b"", final=True)
        if not self._is_text:
            return {}
        lines = self._lines + (not self._ends_in_one)
        columns = _columns(self._start)
        table = {"kind": "table", "columns": columns} if columns > 1 else {"kind": "text"}
        return {**table, "lines": lines, "encoding": self._encoding}


def _columns(start: str) -> int:
    """How many columns the table has that begins like this; 1 where it is none."""
    whole_lines = start.rpartition("\n")[0] if len(start) == SAMPLE else start
    header = start.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    try:
        widths = {len(row) for row in csv.reader(io.StringIO(whole_lines), delimiter=delimiter) if row}
    except csv.Error:
        return 1
    return widths.pop() if len(widths) == 1 else 1
