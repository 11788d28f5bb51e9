"""How does a table become a file that is safe to open? As CSV for spreadsheets, and as PDF for reading.

Its one rule: text that a spreadsheet could read as a formula gets an apostrophe, wherever a program may see the start
of a cell. Numbers stay numbers. A CSV is written row by row, so it may have any length.

Limits: a PDF holds MOST_ROWS rows. Its fonts have the letters of Western Europe. Other letters become "?". Text wider
than its column is cut. The CSV holds everything.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4, landscape
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.platypus import LongTable, Paragraph, SimpleDocTemplate, TableStyle

MOST_ROWS = 5_000  # of a PDF: about 170 pages
MOST_CHARACTERS = 200  # of a PDF's cell
FONT, SIZE, LEADING = "Helvetica", 8, 10  # points
MARGIN, PADDING = 36, 4  # points: of a page, and on each side of a cell
MARGINS = dict.fromkeys(["leftMargin", "rightMargin", "topMargin", "bottomMargin"], MARGIN)
STYLE = TableStyle(
    [
        ("FONT", (0, 0), (-1, -1), FONT, SIZE, LEADING),
        ("FONT", (0, 0), (-1, 0), f"{FONT}-Bold", SIZE, LEADING),
        ("LINEBELOW", (0, 0), (-1, -1), 0.25, colors.lightgrey),
        ("LEFTPADDING", (0, 0), (-1, -1), PADDING),
        ("RIGHTPADDING", (0, 0), (-1, -1), PADDING),
    ]
)

NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
# The characters that begin a formula, in their ASCII, full-width and small forms.
FORMULA = tuple("=+-@|＝＋－＠｜﹦﹢﹣﹫")
# After these, a program may see the next cell, depending on country or import dialog. The comma is safe: a program that
# splits at commas respects the quotes around our cells.
SEPARATOR = re.compile(r"([;\t\r\n])")
# A program may skip these before a formula: spaces, invisible characters and quotes.
SKIPPED = '"' + "".join(
    each for each in map(chr, range(0x10000)) if each.isspace() or unicodedata.category(each) in {"Cc", "Cf"}
)


def harmless(text: str) -> str:
    """The text with an apostrophe before each part that a program could read as a formula."""
    parts = (f"'{part}" if part.lstrip(SKIPPED).startswith(FORMULA) else part for part in SEPARATOR.split(text))
    return ("'" if SEPARATOR.match(text) else "") + "".join(parts)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Write a table as UTF-8 with the byte order mark that spreadsheets need; returns the number of its rows."""
    number = 0
    with path.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([harmless(column) for column in columns])
        for number, row in enumerate(rows, 1):  # noqa: B007 - its last value is returned
            writer.writerow([_cell(value) for value in row])
    return number


def write_pdf(path: Path, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], of: int) -> None:
    """Write the first `rows` of a table that has `of` rows. The last line says so. Each page repeats the columns."""
    document = SimpleDocTemplate(str(path), pagesize=landscape(A4), title=title, **MARGINS)
    table = [[printable(value) for value in row] for row in (columns, *rows)]
    widths = _widths(table, document.pagesize[0] - 2 * MARGIN)
    shown = f"{of:,} rows." if len(rows) == of else f"The first {len(rows):,} of {of:,} rows."
    styles = getSampleStyleSheet()
    parts = [
        Paragraph(escape(printable(title)), styles["Heading2"]),
        LongTable([list(map(_cut, row, widths)) for row in table], widths, repeatRows=1, style=STYLE),
        Paragraph(shown, styles["Normal"]),
    ]
    document.build(parts, onFirstPage=_number_page, onLaterPages=_number_page)


def _cell(value: Any) -> Any:
    """The value as the CSV shows it."""
    if isinstance(value, (int, float, Decimal)) and NUMBER.fullmatch(str(value)):
        return value
    return harmless(_text(value))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime) and value.tzinfo:
        return value.astimezone(UTC).isoformat(sep=" ", timespec="seconds")
    return str(value)


def printable(value: Any) -> str:
    """The value as a PDF shows it: cut, on one line, with characters of its fonts only."""
    text = "".join(each if each.isprintable() else " " for each in _text(value)[:MOST_CHARACTERS])
    return text.encode("cp1252", "replace").decode("cp1252")


def _widths(table: list[list[str]], whole: float) -> list[float]:
    """The width of each column, by its longest text, within bounds, so that long texts leave room for short ones."""
    longest = [max(map(len, column)) for column in zip(*table, strict=True)]
    shares = [min(max(each, 5), 40) for each in longest]
    return [whole * share / sum(shares) for share in shares]


def _cut(text: str, width: float) -> str:
    room = width - 2 * PADDING
    if room <= 0:
        return ""
    needed = stringWidth(text, FONT, SIZE)
    if needed <= room:
        return text
    text = text[: int(len(text) * room / needed)]
    while text and stringWidth(f"{text}…", FONT, SIZE) > room:
        text = text[:-1]
    return f"{text}…"


def _number_page(canvas: Any, document: Any) -> None:
    canvas.setFont(FONT, SIZE)
    canvas.drawRightString(document.pagesize[0] - MARGIN, MARGIN / 2, f"page {document.page}")
