"""The serializer of cached values: plain JSON comes back unchanged, other values are refused with advice."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from django.http import HttpResponse, JsonResponse

from jobs.cache.backend import JSON, NotJSONError
from jobs.models import Run, State

ITSELF: list[object] = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    "value", [None, True, 0, -7, 2**70, 0.1, "", "ü\ud800", [], {}, [1, [2, {"a": None}]], {"a": 1}, State.RUNNING]
)
def test_it_returns_a_value_unchanged(value):
    assert JSON().loads(JSON().dumps(value).encode()) == value


def test_it_writes_whole_numbers_so_that_redis_can_increment_them():
    assert JSON().dumps(41) == "41"


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (Run(schedule_name="nightly"), "Run is not JSON, pass a dict of plain values"),
        ({"runs": [Run.objects.all()]}, "RunQuerySet is not JSON, pass list(queryset.values(...))"),
        (datetime(2026, 3, 1, tzinfo=UTC), "datetime is not JSON, pass its isoformat()"),
        (timedelta(1), "timedelta is not JSON, pass its total_seconds()"),
        (Decimal("1.10"), "Decimal is not JSON, pass it as text"),
        ({1, 2}, "set is not JSON, pass a sorted list"),
        (UUID(int=1), "UUID is not JSON, pass plain values"),
        (b"bytes", "bytes is not JSON, pass plain values"),
        ((1, 2), "Pass lists instead of tuples"),
        ({1: "one"}, "dicts whose keys are text"),
        ({(1, 2): "pair"}, "keys must be str"),
        (float("nan"), "not JSON compliant"),
        (ITSELF, "Circular reference"),
    ],
)
def test_it_refuses_a_value_that_would_come_back_changed(value, advice):
    with pytest.raises(NotJSONError) as refusal:
        JSON().dumps(value)
    assert advice in str(refusal.value)


def test_it_returns_a_page_as_its_client_sees_it():
    page = HttpResponse(bytes(range(256)), status=203, reason="Odd", headers={"X-Odd": "ü", "Vary": "Cookie"})
    page.set_cookie("theme", "dark", max_age=60, samesite="Lax")
    page.set_cookie("tour", "done")
    again = JSON().loads(JSON().dumps(page).encode())
    assert again.serialize() == page.serialize()
    assert (again.status_code, again.reason_phrase, str(again.cookies)) == (203, "Odd", str(page.cookies))


def test_it_returns_a_text_that_looks_like_a_page_as_a_text():
    page = JSON().dumps(JsonResponse({"a": 1}))
    assert JSON().loads(JSON().dumps(page).encode()) == page
