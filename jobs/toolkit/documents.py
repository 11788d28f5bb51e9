"""How does a table become a file that is safe to open? As CSV for spreadsheets, and as PDF for reading.

Its one rule: a text that a spreadsheet could take for a formula gets an apostrophe, wherever such a program may see a
cell begin; numbers stay numbers. A CSV is written row by row, whatever its length.

Limits: a PDF holds MOST_ROWS rows. Its fonts know the letters of Western Europe and show others as "?"; what is wider
than its column is cut. The CSV has everything.
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

MOST_ROWS = 5_000  # of a PDF: some 170 pages
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
# What begins a formula: as ASCII, full-width and small characters.
FORMULA = tuple("=+-@|＝＋－＠｜﹦﹢﹣﹫")
# Behind these a program may see the next cell, in some country or import dialog. The comma is none of them: where it
# separates cells, the quotes around ours count.
SEPARATOR = re.compile(r"([;\t\r\n])")
# What may stand before a formula: space, what cannot be seen, and quotes, which a program may take away.
SKIPPED = '"' + "".join(
    each for each in map(chr, range(0x10000)) if each.isspace() or unicodedata.category(each) in {"Cc", "Cf"}
)


def harmless(text: str) -> str:
    """The text with an apostrophe before all that could be taken for a formula."""
    parts = (f"'{part}" if part.lstrip(SKIPPED).startswith(FORMULA) else part for part in SEPARATOR.split(text))
    return ("'" if SEPARATOR.match(text) else "") + "".join(parts)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Write a table as UTF-8, with the mark by which spreadsheets know it; returns the number of its rows."""
    number = 0
    with path.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([harmless(column) for column in columns])
        for number, row in enumerate(rows, 1):  # noqa: B007 - its last value is the answer
            writer.writerow([_cell(value) for value in row])
    return number


def write_pdf(path: Path, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], of: int) -> None:
    """Write a table, or the first `rows` of so many, which its last line then says; each page repeats the columns."""
    document = SimpleDocTemplate(str(path), pagesize=landscape(A4), title=title, **MARGINS)
    table = [[_printable(value) for value in row] for row in (columns, *rows)]
    widths = _widths(table, document.pagesize[0] - 2 * MARGIN)
    shown = f"{of:,} rows." if len(rows) == of else f"The first {len(rows):,} of {of:,} rows."
    styles = getSampleStyleSheet()
    parts = [
        Paragraph(escape(_printable(title)), styles["Heading2"]),
        LongTable([list(map(_cut, row, widths)) for row in table], widths, repeatRows=1, style=STYLE),
        Paragraph(shown, styles["Normal"]),
    ]
    document.build(parts, onFirstPage=_number_page, onLaterPages=_number_page)


def _cell(value: Any) -> Any:
    """As the CSV has it."""
    if isinstance(value, (int, float, Decimal)) and NUMBER.fullmatch(str(value)):
        return value
    return harmless(_text(value))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime) and value.tzinfo:
        return value.astimezone(UTC).isoformat(sep=" ", timespec="seconds")
    return str(value)


def _printable(value: Any) -> str:
    """As the PDF's fonts can show it, in one line."""
    text = "".join(each if each.isprintable() else " " for each in _text(value)[:MOST_CHARACTERS])
    return text.encode("cp1252", "replace").decode("cp1252")


def _widths(table: list[list[str]], whole: float) -> list[float]:
    """The width of the page divided by what the columns hold; a few long texts do not press the others flat."""
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
