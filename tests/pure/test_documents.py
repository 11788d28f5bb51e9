"""Are the files of reports safe to open, and do they show the whole table?"""

import csv
import io
import re
import zlib
from base64 import a85decode
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.toolkit.documents import harmless, write_csv, write_pdf

DANGEROUS = "=+-@|＝＋－＠｜"
UNSEEN = "\u200b\u200e\u2060\ufeff\u00ad\x00\x07\x7f"
AWKWARD = st.text("=-＝;,\t\r\n \u3000\u200b\0\"'a1", max_size=12)


def begins_formula(cell: str) -> bool:
    seen = cell.strip()
    while seen != (seen := seen.strip(UNSEEN).strip()):
        pass
    return seen.startswith(tuple(DANGEROUS))


def written(tmp_path: Path, columns: list[str], *rows: list[Any]) -> str:
    assert write_csv(tmp_path / "table.csv", columns, rows) == len(rows)
    return (tmp_path / "table.csv").read_bytes().decode("utf-8-sig")


@given(st.lists(st.lists(AWKWARD, min_size=3, max_size=3), max_size=4))
def test_it_lets_no_cell_begin_a_formula_with_any_delimiter(tmp_path_factory, rows):
    text = written(tmp_path_factory.getbasetemp(), ["a", "b", "c"], *rows)
    for delimiter in ",;\t":
        cells = [cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) for cell in row]
        assert not [cell for cell in cells if begins_formula(cell)]


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2)))
def test_it_adds_only_apostrophes(tmp_path_factory, rows):
    text = written(tmp_path_factory.getbasetemp(), ["a", "b"], *rows)
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert [[cell.replace("'", "") for cell in row] for row in read[1:]] == [
        [cell.replace("'", "") for cell in row] for row in rows
    ]


@pytest.mark.parametrize("sign", DANGEROUS)
@pytest.mark.parametrize("before", ["", " ", "\u00a0", "\u3000", "\ufeff", "\u200b ", "\x00"])
def test_it_puts_an_apostrophe_before_a_formula(sign, before):
    assert harmless(f"{before}{sign}1+1") == f"'{before}{sign}1+1"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("\n=1", "'\n'=1"),
        ("a;=1", "a;'=1"),
        ("a; @b", "a;' @b"),
        ("a\n-b", "a\n'-b"),
        ('"=1"', '\'"=1"'),
        ("a-b, -c", "a-b, -c"),
        ("", ""),
        ("'=1", "'=1"),
    ],
)
def test_it_adds_apostrophes_only_where_a_formula_could_begin(text, safe):
    assert harmless(text) == safe


def test_it_is_quick_when_a_cell_is_malicious():
    for slow in (" " * 200_000, "\t" * 200_000, " \t" * 100_000, "\u200b;" * 100_000):
        assert harmless(slow).replace("'", "") == slow


def test_it_keeps_numbers_as_numbers(tmp_path):
    values = [-5, 0.25, Decimal("-1.50"), 10**30, -1e-9]
    assert written(tmp_path, ["a"] * 5, values).splitlines()[1] == "-5,0.25,-1.50,1" + "0" * 30 + ",-1e-09"


def test_it_writes_other_values_as_text(tmp_path):
    berlin = timezone(timedelta(hours=2))
    moments = [datetime(2026, 7, 1, 12, 30, tzinfo=berlin), datetime(2026, 7, 1, 10, 30, 5, 7, tzinfo=UTC)]
    values = [None, True, float("-inf"), float("nan"), Decimal("-Infinity"), -timedelta(hours=1), *moments, "\ud800"]
    line = written(tmp_path, ["a"] * 9, values).splitlines()[1]
    assert line == (
        '"","True","\'-inf","nan","\'-Infinity","\'-1 day, 23:00:00",'
        '"2026-07-01 10:30:00+00:00","2026-07-01 10:30:05+00:00","\\ud800"'
    )


def test_it_writes_the_columns_of_an_empty_table_and_makes_them_harmless(tmp_path):
    assert written(tmp_path, ["=a", "b"]) == '"\'=a","b"\r\n'
    assert (tmp_path / "table.csv").read_bytes().startswith(b"\xef\xbb\xbf")


# --- PDF ------------------------------------------------------------------------------------------------------------


def pages_of(path: Path) -> list[str]:
    """The text of each page, a line for each piece of text."""
    streams = re.findall(rb"stream\r?\n(.*?)endstream", path.read_bytes(), re.DOTALL)
    contents = [zlib.decompress(a85decode(stream.strip(), adobe=True)) for stream in streams]
    return ["\n".join(map(unescaped, re.findall(rb"\(((?:\\.|[^\\)])*)\) Tj", content))) for content in contents]


def unescaped(text: bytes) -> str:
    code = re.compile(rb"\\(\d{3}|.)", re.DOTALL)
    return code.sub(lambda it: bytes([int(it[1], 8)]) if it[1].isdigit() else it[1], text).decode("cp1252")


def test_it_repeats_the_columns_on_every_page_and_numbers_them(tmp_path):
    rows = [[f"row {number}", number] for number in range(200)]
    write_pdf(tmp_path / "it.pdf", "All <of> it", ["name", "number"], rows, of=200)
    pages = pages_of(tmp_path / "it.pdf")
    assert len(pages) > 2
    for number, page in enumerate(pages, 1):
        assert "name\nnumber" in page
        assert f"page {number}" in page
    assert "All <of> it" in pages[0].replace("\n", "")
    assert "200 rows." in pages[-1]
    assert [line for line in "\n".join(pages).splitlines() if line.startswith("row ")] == [row[0] for row in rows]


def test_it_says_so_when_the_table_has_more_rows_than_it_shows(tmp_path):
    write_pdf(tmp_path / "it.pdf", "it", ["a"], [[1], [2]], of=12_345)
    assert "The first 2 of 12,345 rows." in pages_of(tmp_path / "it.pdf")[-1]


def test_it_shows_the_columns_of_an_empty_table(tmp_path):
    write_pdf(tmp_path / "it.pdf", "it", ["name"], [], of=0)
    assert pages_of(tmp_path / "it.pdf")[0].splitlines() == ["page 1", "it", "name", "0 rows."]


def test_it_cuts_long_text_and_marks_letters_that_its_fonts_lack(tmp_path):
    long = "x" * 100_000
    write_pdf(tmp_path / "it.pdf", "it", ["a", "b"], [[long, "two\nlines \0 (é) \\ 日本 €"]], of=1)
    page = pages_of(tmp_path / "it.pdf")[0]
    assert re.search(r"^x{20,200}…$", page, re.MULTILINE)
    assert "two lines   " in page
    assert "é" in page
    assert "?? €" in page


@pytest.mark.parametrize("columns", [1, 60])
def test_it_fits_any_number_of_columns_on_a_page(tmp_path, columns):
    write_pdf(tmp_path / "it.pdf", "it", ["column"] * columns, [["a long text of many words"] * columns] * 3, of=3)
    assert len(pages_of(tmp_path / "it.pdf")) == 1
