"""A token admits its program at its rate, until it expires or is revoked; the database holds no secret."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobs.models import ApiToken, database_now
from jobs.models.tokens import WINDOW
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db

SECOND = timedelta(seconds=1)


def make(rate: int = 600) -> tuple[ApiToken, str]:
    user = User.objects.create_superuser("ada")
    return ApiToken.objects.issue("ci", user, ["jobs.add_run"], "ada", rate=rate)


def admit(secret: str) -> ApiToken | None:
    return ApiToken.objects.admit(secret).token


def test_it_admits_a_secret_and_notes_when_it_was_used():
    token, secret = make()
    before = database_now()
    assert admit(secret) == token
    assert before <= ApiToken.objects.get().last_used_at <= database_now()
    with CaptureQueriesContext(connection) as queries:
        admit(secret)
    assert len(queries) == 2


def test_it_stores_no_secret():
    _, secret = make()
    row = str(ApiToken.objects.values().get())
    assert secret not in row
    assert secret[len("punctual_") :] not in row


@pytest.mark.parametrize("wrong", ["", "x", "punctual_", "\0", "\ud800", "ü" * 10_000])
def test_it_admits_no_other_secret(wrong):
    _, secret = make()
    assert ApiToken.objects.admit(wrong) == ApiToken.objects.admit(secret + wrong + " ") == (None, 0)
    assert ApiToken.objects.get().last_used_at is None


@pytest.mark.parametrize(
    "columns",
    [{"revoked_at": database_now}, {"expires_at": lambda: database_now() - SECOND}],
    ids=["revoked", "expired"],
)
def test_it_admits_no_token_that_is_over(columns):
    _, secret = make()
    ApiToken.objects.update(**{name: value() for name, value in columns.items()})
    assert ApiToken.objects.admit(secret) == (None, 0)


def test_it_admits_no_token_of_a_disabled_user():
    _, secret = make()
    User.objects.update(is_active=False)
    assert ApiToken.objects.admit(secret) == (None, 0)


def test_it_admits_a_token_until_the_moment_at_which_it_expires():
    token, secret = make()
    ApiToken.objects.update(expires_at=database_now() + WINDOW)
    assert admit(secret) == token


def test_it_admits_as_many_requests_at_once_as_the_rate_allows_in_a_minute():
    token, secret = make(rate=2)
    assert [admit(secret) for _ in range(2)] == [token] * 2
    refused = ApiToken.objects.admit(secret)
    assert refused.token == token
    assert 0 < refused.retry_after <= (WINDOW / 2).total_seconds()
    used = ApiToken.objects.get().last_used_at
    ApiToken.objects.admit(secret)
    assert ApiToken.objects.get().last_used_at == used  # a refused request is free
    free_at = ApiToken.objects.get().next_free_at
    ApiToken.objects.update(next_free_at=free_at - WINDOW / 2)  # as if so much time had passed
    assert ApiToken.objects.admit(secret) == (token, 0)
    assert ApiToken.objects.admit(secret).retry_after > 0


def test_it_keeps_its_rate_when_the_clock_has_gone_back():
    token, secret = make(rate=2)
    ApiToken.objects.update(next_free_at=database_now() + 60 * WINDOW)  # written by a clock that was an hour ahead
    assert [admit(secret) for _ in range(2)] == [token] * 2
    assert 0 < ApiToken.objects.admit(secret).retry_after <= (WINDOW / 2).total_seconds()


@pytest.mark.django_db(transaction=True)
def test_it_keeps_its_rate_when_many_requests_come_at_once():
    _, secret = make(rate=2)
    barrier = threading.Barrier(12)

    def request(_: int) -> bool:
        barrier.wait(DEADLINE)
        try:
            return not ApiToken.objects.admit(secret).retry_after
        finally:
            connection.close()

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(request, range(12))) == 2
