"""What happened since the last time? Writes the rows of a query into a CSV, a PDF or both, and mails links to them.

It shows work on many rows with little memory. The rows pass one by one from a server-side cursor into a file. The file
then goes into the storage. The report covers the data window of the run. So daily reports leave no gap and no overlap.
A backfill makes the report of a skipped day. A second attempt replaces the files and mails only the remaining
addresses.

Limits: anyone with a link can read the report until the link expires. Leave `mail_to` empty to fetch it in the admin.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from celery import shared_task
from django.utils.timezone import localtime
from pydantic import Field, validate_call

from jobs.models import StoredFile
from jobs.toolkit import direct, documents, files, mail, queries
from jobs.toolkit.current import progress

STEP = 1_000  # rows between two updates of the progress
TYPES = {"csv": "text/csv; charset=utf-8", "pdf": "application/pdf"}

Formats = Literal["csv", "pdf", "both"]
MailTo = Annotated[list[mail.Address], Field(max_length=100, description="Addresses that get links to the files.")]

logger = logging.getLogger(__name__)


@shared_task(name="jobs.report")
@validate_call
def report(
    query: queries.QueryName,
    formats: Formats = "csv",
    mail_to: MailTo = [],  # noqa: B006 - read only
) -> dict[str, int]:
    """Make the report; returns how many rows and files it has, and to how many addresses it was sent.

    Raises `jobs.toolkit.mail.MailError` if the mail server accepts nothing now, or no address was reached, and
    `jobs.toolkit.direct.PoolerError` behind a pooler without DATABASE_DIRECT_URL.
    """
    window = queries.window()
    title = f"{query}, {window}"
    with TemporaryDirectory(prefix="report-") as folder:
        csv, pdf = (Path(folder, f"{query} {localtime(window.end):%Y-%m-%d %H%M}.{suffix}") for suffix in TYPES)
        first: list[Sequence[Any]] = []
        with direct.session():
            table = queries.execute(query, window)
            number = documents.write_csv(csv, table.columns, _passing(table.rows, first))
        if formats != "csv":
            progress(number, number, "writing the PDF")
            documents.write_pdf(pdf, title, table.columns, first, of=number)
        stored = [_keep(path) for path in (csv, pdf) if formats in {path.suffix[1:], "both"}]
    logger.info("%s: %d rows in %d files.", title, number, len(stored))
    sent = mail.send(_message(title, number, stored), mail_to)["sent"] if mail_to else 0
    return {"rows": number, "files": len(stored), "sent": sent}


def _passing(rows: Iterable[Sequence[Any]], first: list[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """Pass the rows on, report the progress, and collect the first rows for the PDF."""
    for number, row in enumerate(rows, 1):
        if number <= documents.MOST_ROWS:
            first.append([documents.printable(value) for value in row])  # cut values take little memory
        if number % STEP == 0:
            progress(number, message="rows")
        yield row


def _keep(path: Path) -> StoredFile:
    with path.open("rb") as content:
        return files.keep(path.name, content, StoredFile.Kind.REPORT, TYPES[path.suffix[1:]])


def _message(title: str, number: int, stored: list[StoredFile]) -> mail.Message:
    rows = f"{number:,} rows" if number else "nothing was found"
    links = "".join(f"{row.name}\n{files.link(row)}\n\n" for row in stored)
    text = f"{title}: {rows}.\n\n{links}The links expire after {files.LINK_DAYS} days."
    # Each attempt makes new links to the same files; the name keeps it the same message.
    return mail.Message(title, text, name=f"report {' '.join(row.name for row in stored)}")
