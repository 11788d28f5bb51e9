"""What else is kept for people to read? Messages set aside, deliveries of mail, entries of feeds, measurements."""

from collections.abc import Sequence
from datetime import datetime
from math import isfinite
from typing import Any
from uuid import UUID

from django.db.models import Model
from django.http import HttpRequest
from ninja import Field, Query, Router, Schema

from jobs.models import Delivery, FeedEntry, Measurement, SetAside
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import needs

router = Router(tags=["kept"])


class SetAsideOut(Schema):
    digest: str
    why: str
    first_at: datetime
    last_at: datetime
    times: int
    queue: str
    node: str
    size: int = Field(description="In bytes.")
    excerpt: str = Field(description="Its beginning, with secrets masked.")


class DeliveryOut(Schema):
    id: UUID = Field(description="The left part of its Message-ID.")
    run: UUID
    address: str
    state: Delivery.State = Field(description="“sending” means that it is in doubt.")
    reason: str
    begun_at: datetime


class FeedEntryOut(Schema):
    id: int
    feed: str
    guid: str
    title: str
    link: str
    published_at: datetime | None
    imported_at: datetime


class MeasurementOut(Schema):
    id: int
    dataset: str
    at: datetime
    key: str
    column: str
    value: float | None = Field(description="Null for a value that JSON cannot express, such as infinity.")
    loaded_at: datetime


@router.get("/set-aside", response=Page[SetAsideOut])
@needs("jobs.view_setaside")
def list_set_aside(request: HttpRequest, paging: Query[Paging]) -> Any:
    """Items that the workers removed from the broker without executing them, the latest first."""
    return _page(request, paging, SetAside, SetAsideOut, ["-last_at", "-digest"])


@router.get("/deliveries", response=Page[DeliveryOut])
@needs("jobs.view_delivery")
def list_deliveries(request: HttpRequest, paging: Query[Paging]) -> Any:
    """The outcome of each message to an address, the latest first."""
    return _page(request, paging, Delivery, DeliveryOut, ["-begun_at", "-id"])


@router.get("/feed-entries", response=Page[FeedEntryOut])
@needs("jobs.view_feedentry")
def list_feed_entries(request: HttpRequest, paging: Query[Paging]) -> Any:
    """The entries of imported feeds, the latest first."""
    return _page(request, paging, FeedEntry, FeedEntryOut, ["-id"])


@router.get("/measurements", response=Page[MeasurementOut])
@needs("jobs.view_measurement")
def list_measurements(request: HttpRequest, paging: Query[Paging]) -> Any:
    """The values that `jobs.etl` has loaded, the latest first."""
    return _page(request, paging, Measurement, MeasurementOut, ["-id"])


def _page(
    request: HttpRequest, paging: Paging, model: type[Model], out: type[Schema], order: Sequence[str]
) -> dict[str, Any]:
    def show(row: Any) -> dict[str, Any]:
        values = {name: getattr(row, "run_id" if name == "run" else name) for name in out.model_fields}
        return {name: value if _is_json(value) else None for name, value in values.items()}

    return page(request, model._default_manager.all(), paging, order, show)


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or isfinite(value)
