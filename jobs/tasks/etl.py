"""What did that source measure? Loads numbers from a CSV or JSON lines address into the table of measurements.

It shows a chain, extract | clean | load, and an import that may be repeated: it requests the data window of its run
(`{start}` and `{end}` in the address) and makes the table equal to the source for that window. Loading the same window
twice, by a retry, a rescue or a backfill, leaves the same rows. Steps pass on the id of a file. So the raw response and
the cleaned numbers can be inspected afterwards.

Limits: a response is read whole, up to LARGEST bytes. `jobs.toolkit.rows` decides which rows are dropped. A run without
a schedule, or without a previous due moment, has a window without a start: it requests data from 1970 on. Backfill the
schedule to load data from before its first run.
"""

import json
import logging
from dataclasses import asdict
from datetime import UTC, datetime
from io import BytesIO
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal
from uuid import UUID

from celery import Task, chain, shared_task
from pydantic import AfterValidator, Field, validate_call

from jobs.models import Measurement, StoredFile, database_now
from jobs.toolkit import files, http, rows
from jobs.toolkit.current import current_run, progress

LARGEST = 20_000_000  # bytes of a response
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

logger = logging.getLogger(__name__)


def _address(source: str) -> str:
    if not source.startswith(("http://", "https://", "/")):
        raise ValueError("write https://host/path, or /path of this site")
    return source


def _distinct(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


Source = Annotated[
    str,
    Field(
        max_length=2000, description="With the run's window, such as https://example.org/data?from={start}&to={end}."
    ),
    AfterValidator(_address),
]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Names = Annotated[
    list[Name], Field(min_length=1, max_length=50, description="The columns with numbers."), AfterValidator(_distinct)
]


@shared_task(name="jobs.etl")
@validate_call
def etl(
    source: Source,
    dataset: Annotated[Name, Field(description="A name for the measurements; use one per source.")],
    key: Annotated[Name, Field(description="The column that names the thing measured.")],
    time: Annotated[Name, Field(description="The column with the time, in ISO 8601.")],
    values: Names,
    form: Annotated[Literal["csv", "jsonl"], Field(description="The format of the source.")] = "csv",
) -> None:
    """Start the three steps for the data window of this run."""
    run = current_run()
    start, end = (run.window_start or BEGINNING, run.window_end) if run else (BEGINNING, database_now())
    window = _text(start), _text(end)
    address = source.replace("{start}", window[0]).replace("{end}", window[1])
    columns = {"key": key, "time": time, "values": values}
    chain(extract.s(address, dataset, form), clean.s(form, columns, *window), load.s(dataset, *window)).delay()


@shared_task(name="jobs.etl.extract", base=Task, step_of="jobs.etl")
def extract(address: str, dataset: str, form: str) -> str:
    """Fetch the source and store it unchanged. Returns the id of the file. Raises `jobs.toolkit.http.FetchError`."""
    response = http.fetch("GET", address, limit=LARGEST).require(200)
    raw = files.keep(f"{dataset}.{form}", BytesIO(response.body), StoredFile.Kind.DATA)
    progress(1, 3, f"{raw.size:,} bytes extracted")
    return str(raw.id)


@shared_task(name="jobs.etl.clean", base=Task, step_of="jobs.etl")
def clean(raw: str, form: str, columns: dict[str, Any], start: str, end: str) -> dict[str, Any]:
    """Store the numbers that `load` can load. Returns the id of their file, and the numbers of rows."""
    source = files.find(UUID(raw))
    with source.file.open("rb") as content:
        window = datetime.fromisoformat(start), datetime.fromisoformat(end)
        parsed = rows.parse(content.read(), form, rows.Columns(**columns), *window)
    for reason in parsed.reasons:
        logger.warning("%s: dropped %s", source.name, reason)
    with TemporaryFile() as lines:
        lines.writelines(json.dumps(asdict(cell), default=_text).encode() + b"\n" for cell in parsed.cells)
        lines.seek(0)
        kept = files.keep(f"{source.name}-clean.jsonl", lines, StoredFile.Kind.DATA)
    progress(2, 3, f"{parsed.dropped:,} of {parsed.rows:,} rows dropped")
    return {"file": str(kept.id), "extracted": parsed.rows, "dropped": parsed.dropped}


@shared_task(name="jobs.etl.load", ignore_result=False, base=Task, step_of="jobs.etl")
def load(cleaned: dict[str, Any], dataset: str, start: str, end: str) -> dict[str, int]:
    """Make these the only numbers of the window in the table, in one transaction; returns all counts."""
    with files.find(UUID(cleaned["file"])).file.open("rb") as content:
        loaded, removed = Measurement.objects.replace(dataset, start, end, map(json.loads, content))
    counts = {name: cleaned[name] for name in ("extracted", "dropped")} | {"loaded": loaded, "removed": removed}
    progress(3, 3, f"{loaded:,} numbers loaded")
    logger.info("%s from %s until %s: %s.", dataset, start, end, ", ".join(f"{n:,} {of}" for of, n in counts.items()))
    return counts


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")  # "+" means a space in an address
