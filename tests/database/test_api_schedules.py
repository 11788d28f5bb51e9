"""A program lists, reads, creates, changes and deletes schedules, and acts on them, as a user of the admin can."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jobs.models import KINDS, ApiToken, AuditEntry, Backfill, Policy, Run, State, Trigger, database_now
from jobs.models.audit import Actor
from jobs.schedules import calendar
from tests.making import blocked, make_run, make_schedule, only_where_rows_are_locked
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db
ROOT = "/api/schedules"
NEW = {"name": "new", "job": "tests.nothing", "timing": {"every": "1 hour"}}
HOUR = timedelta(hours=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def api(client):
    """A client with the session of a superuser."""
    client.force_login(User.objects.create_superuser("ada"))
    return client


def send(client, method: str, address: str, body: Any = None, **headers: str) -> Any:
    content = "" if body is None else json.dumps(body)
    return client.generic(method, f"{ROOT}{address}", content, "application/json", headers=headers)


def rows() -> list[Any]:
    """Everything that a request could change."""
    models = (PeriodicTask, Policy, *KINDS.values(), Run, Backfill, AuditEntry)
    return [list(model.objects.order_by("pk").values()) for model in models]


@contextmanager
def undone() -> Iterator[None]:
    """Undo what the block writes."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def sentence(answer: Any, status: int = 422) -> str:
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    return str(answer.json()["detail"])


# --- one form for reading and writing -------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["C"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
MOMENTS = st.datetimes(datetime(2027, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis wants naive limits
POLICIES = st.fixed_dictionaries(
    {
        "overlap": st.sampled_from(["skip", "queue_one", "allow", "cancel_previous"]),
        "catch_up": st.sampled_from(["none", "latest", "all"]),
        "catch_up_window": st.timedeltas(timedelta(0), timedelta(days=3650)),
        "jitter": st.timedeltas(timedelta(0), timedelta(days=3650)),
        "retry_delay": st.timedeltas(timedelta(0), timedelta(days=3650)),
        "remaining_runs": st.none() | st.integers(1, 2**31 - 1),
        "pause_after_failures": st.none() | st.integers(1, 1000),
        "max_attempts": st.integers(1, 100),
        "rerun_if_lost": st.booleans(),
        "time_limit": st.none() | st.integers(100, 2**31 - 1),
        "soft_time_limit": st.none() | st.integers(1, 99),
        "keep_result": st.none() | st.booleans(),
        "skip_next": st.integers(0, 9),
    }
)
TIMINGS = st.one_of(
    st.builds(
        dict,
        interval=st.builds(
            IntervalSchedule,
            every=st.integers(1, 10**6),
            period=st.sampled_from(["days", "hours", "minutes", "seconds"]),
        ),
    ),
    st.builds(
        dict,
        crontab=st.builds(
            CrontabSchedule,
            minute=st.sampled_from(["*", "*/5", "0,30"]),
            hour=st.integers(0, 23).map(str),
            timezone=st.sampled_from(["UTC", "Europe/Berlin"]),
        ),
    ),
    st.builds(
        dict,
        solar=st.builds(
            SolarSchedule,
            event=st.just("sunset"),
            latitude=st.decimals(-60, 60, places=6),
            longitude=st.decimals(-180, 180, places=6),
        ),
    ),
    st.builds(dict, clocked=st.builds(ClockedSchedule, clocked_time=MOMENTS)),
)
SCHEDULES = st.fixed_dictionaries(
    {
        "args": st.lists(JSON, max_size=2).map(json.dumps),
        "kwargs": st.dictionaries(TEXTS, JSON, max_size=2).map(json.dumps),
        "headers": st.dictionaries(st.sampled_from(["colour", "Größe"]), JSON, max_size=2).map(json.dumps),
        "description": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30),
        "enabled": st.booleans(),
        "expires": st.just(None),
        "expire_seconds": st.none() | st.integers(1, 2**31 - 1),
        "queue": st.none() | st.just("celery"),
        "priority": st.none() | st.integers(0, 255),
    }
) | st.just({"expires": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)})


@given(SCHEDULES, POLICIES, TIMINGS)
@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_it_changes_nothing_when_the_shown_form_is_sent_back(api, columns, policy, timing):
    with undone():
        [(kind, row)] = timing.items()
        row.save()
        one_off = {"one_off": True} if kind == "clocked" else {"start_time": START}
        schedule = make_schedule("it", "tests.nothing", **timing, **one_off, **columns, policy=policy)
        before = rows()
        shown = send(api, "GET", f"/{schedule.pk}")
        assert shown.status_code == 200
        for method in ("PATCH", "PUT"):
            answer = send(api, method, f"/{schedule.pk}", shown.json())
            assert answer.status_code == 200, answer.content
            assert answer.json() == shown.json()
        assert rows() == before


def test_it_shows_a_schedule_that_sql_wrote_against_the_rules_and_leaves_it_alone(api):
    schedule = make_schedule("odd", cron={"minute": "*/7"})
    PeriodicTask.objects.filter(pk=schedule.pk).update(args="{", kwargs="[1]", headers="null", task="gone")
    CrontabSchedule.objects.update(minute="x")
    calendar.refresh(PeriodicTask.objects.all())
    shown = send(api, "GET", f"/{schedule.pk}").json()
    assert (shown["arguments"], shown["args"], shown["headers"]) == (None, None, None)
    assert shown["status"].startswith("cannot run: ")
    assert shown["due"] == []
    before = rows()
    assert send(api, "PATCH", f"/{schedule.pk}", shown).status_code == 200
    assert send(api, "GET", "").json()["items"] == [{name: shown[name] for name in shown if name != "due"}]
    assert rows() == before


@pytest.mark.parametrize(("columns", "policy"), [({"queue": ""}, {}), ({"enabled": False}, {"remaining_runs": 0})])
def test_it_takes_back_the_form_of_a_schedule_that_is_over_or_was_made_elsewhere(api, columns, policy):
    schedule = make_schedule("it", policy=policy)
    PeriodicTask.objects.update(**columns)
    shown, before = send(api, "GET", f"/{schedule.pk}").json(), rows()
    for method in ("PATCH", "PUT"):
        answer = send(api, method, f"/{schedule.pk}", shown)
        assert answer.status_code == 200, answer.content
    assert rows() == before


def test_it_shows_a_schedule_without_a_policy_or_a_timing(api):
    PeriodicTask.objects.bulk_create([PeriodicTask(name="bare", task="tests.nothing")])
    [shown] = send(api, "GET", "").json()["items"]
    assert (shown["policy"], shown["timing"], shown["next_due_at"]) == (None, None, None)
    assert shown["status"] == "being computed: beat reads it within seconds"
    assert send(api, "PATCH", f"/{shown['id']}", shown).status_code == 200


# --- creating and changing ------------------------------------------------------------------------------------------


def test_it_creates_a_schedule_with_all_its_columns(api):
    form = {
        "name": "nightly",
        "job": "tests.note",
        "kwargs": {"path": "/tmp/ä"},
        "timing": {"crontab": "30 7 * * 1-5", "zone": "Europe/Berlin"},
        "enabled": False,
        "description": "two\nlines",
        "start_time": "2026-01-01T01:00:00.000001+01:00",
        "expire_seconds": 60,
        "queue": "celery",
        "priority": 9,
        "headers": {"colour": "blue"},
        "policy": {"overlap": "queue_one", "catch_up_window": 0.5, "keep_result": False, "remaining_runs": 3},
    }
    answer = send(api, "POST", "", form)
    assert answer.status_code == 201, answer.content
    shown = answer.json()
    assert answer["Location"] == f"{ROOT}/{shown['id']}"
    schedule = PeriodicTask.objects.select_related("policy", "crontab").get()
    assert (schedule.name, schedule.task, schedule.enabled, schedule.description) == (
        "nightly",
        "tests.note",
        False,
        "two\nlines",
    )
    assert json.loads(schedule.kwargs) == {"path": "/tmp/ä"}
    assert (schedule.crontab.minute, schedule.crontab.day_of_week, str(schedule.crontab.timezone)) == (
        "30",
        "1-5",
        "Europe/Berlin",
    )
    assert schedule.start_time == datetime(2026, 1, 1, microsecond=1, tzinfo=UTC)
    assert (schedule.expire_seconds, schedule.queue, schedule.priority, json.loads(schedule.headers)) == (
        60,
        "celery",
        9,
        {"colour": "blue"},
    )
    policy = schedule.policy
    assert (policy.overlap, policy.catch_up_window, policy.keep_result, policy.remaining_runs) == (
        "queue_one",
        timedelta(seconds=0.5),
        False,
        3,
    )
    assert policy.max_attempts == 1
    assert shown["start_time"] == "2026-01-01T00:00:00.000001+00:00"
    assert send(api, "GET", f"/{shown['id']}").json() == shown


CHANGES: dict[str, Any] = {
    "name": "other",
    "job": "jobs.heartbeat",
    "arguments": {"a": [1, None]},
    "args": ["b"],
    "timing": {"every": "7 days"},
    "enabled": False,
    "description": "x",
    "start_time": "2027-01-01T00:00:00+00:00",
    "expires": "2099-01-01T00:00:00+00:00",
    "expire_seconds": 5,
    "queue": "celery",
    "priority": 0,
    "headers": {"colour": "blue"},
    "policy": {"overlap": "allow"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_writes_only_the_given_column(api, name):
    schedule = make_schedule("it", policy={"remaining_runs": 9})
    before = send(api, "GET", f"/{schedule.pk}").json()
    # Meanwhile beat counts down, and another user edits other columns.
    Policy.objects.update(remaining_runs=8, max_attempts=3)
    PeriodicTask.objects.exclude(description="x").update(description="theirs")
    answer = send(api, "PATCH", f"/{schedule.pk}", {name: CHANGES[name]})
    assert answer.status_code == 200, answer.content
    after = answer.json()
    expected = {**before, "description": "theirs", name: CHANGES[name]}
    beside = {"remaining_runs": 8, "max_attempts": 3}
    expected["policy"] = before["policy"] | beside | (CHANGES["policy"] if name == "policy" else {})
    follows = {"words", "status", "next_due_at", "due"}
    assert {key: after[key] for key in after if key not in follows} == {
        key: expected[key] for key in expected if key not in follows
    }
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.door, entry.act, entry.kind) == ("ada", "api", "change", "schedule")


def test_it_makes_a_schedule_of_one_moment_a_one_off(api):
    form = {**NEW, "timing": {"once": "2099-12-24T18:00:00+01:00"}}
    shown = send(api, "POST", "", form).json()
    assert (shown["one_off"], shown["timing"]) == (True, {"once": "2099-12-24T17:00:00+00:00"})
    assert [due["at"] for due in shown["due"]] == ["2099-12-24T17:00:00+00:00"]
    assert "one_off must" in sentence(send(api, "POST", "", {**form, "name": "other", "one_off": False}))


def test_it_replaces_all_columns_with_put(api):
    schedule = make_schedule(
        "it", "tests.anything", kwargs={"a": 1}, description="old", policy={"overlap": "allow", "jitter": HOUR}
    )
    answer = send(api, "PUT", f"/{schedule.pk}", {**NEW, "policy": {"jitter": 5}})
    assert answer.status_code == 200, answer.content
    shown = answer.json()
    assert (shown["name"], shown["job"], shown["arguments"], shown["description"]) == ("new", "tests.nothing", {}, "")
    assert (shown["policy"]["overlap"], shown["policy"]["jitter"]) == ("skip", 5)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "at least 1 character"),
    ({"name": "x" * 201}, "at most 200 characters"),
    ({"name": "a\x00b"}, "pattern"),
    ({"name": "taken"}, "already"),
    ({"name": None}, "string"),
    ({"job": "tests.nothin"}, "Did you mean 'tests.nothing'?"),
    ({"job": "celery.starmap"}, "internal task of Celery"),
    ({"job": "tests.note", "arguments": {"x": 1}}, "do not fit"),
    ({"arguments": [1]}, "dictionary"),
    ({"arguments": {}, "kwargs": {}}, "kwargs"),
    ({"arguments": {"x": "y" * 20_000}}, "longer than 16384 characters"),
    ({"args": [[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]}, "nested deeper than 20"),
    ({"arguments": {"u": "https://a:b@example.org/"}}, "password"),
    ({"timing": None}, "dictionary"),
    ({"timing": {}}, "exactly one of"),
    ({"timing": {"crontab": "61 * * * *"}}, "61"),
    ({"timing": {"crontab": "* * * * *", "zone": "Nowhere/Else"}}, "Nowhere/Else"),
    ({"timing": {"every": -1}}, "interval"),
    ({"timing": {"every": 1e300}}, "too long"),
    ({"timing": {"every": "1 fortnight"}}, "cannot be read"),
    ({"timing": {"once": "2026-12-24T18:00:00"}}, "offset"),
    ({"timing": {"once": "2001-01-01T00:00:00Z"}}, "It would never run"),
    ({"timing": {"solar": "noon", "latitude": 0, "longitude": 0}}, "noon"),
    ({"enabled": "yes"}, "boolean"),
    ({"start_time": "2026-01-01T00:00:00"}, "add the offset"),
    ({"start_time": 1_700_000_000}, "ISO 8601"),
    ({"start_time": "0001-01-01T00:00:00+05:00"}, "years 1 to 9999"),
    ({"expires": "9999-12-31T23:59:59-05:00"}, "years 1 to 9999"),
    ({"expires": "2001-01-01T00:00:00Z"}, "It would never run"),
    ({"expires": "2099-01-01T00:00:00Z", "expire_seconds": 5}, "Only one can be set"),
    ({"expire_seconds": 0}, "greater than or equal to 1"),
    ({"expire_seconds": 2**31}, "less than or equal to"),
    ({"priority": True}, "integer"),
    ({"priority": 256}, "less than or equal to 255"),
    ({"queue": "unacked"}, "unacked"),
    ({"headers": {"task": "tests.die"}}, "belong to Celery"),
    ({"policy": {"overlap": "queue"}}, "queue_one"),
    ({"policy": {"catch_up_window": -1}}, "greater than or equal to 0"),
    ({"policy": {"catch_up_window": 1e300}}, "less than or equal to"),
    ({"policy": {"retry_delay": "30"}}, "number"),
    ({"policy": {"soft_time_limit": 9, "time_limit": 9}}, "Enter less than 9 s"),
    ({"policy": {"skip_next": 1}}, "skip_next"),
    ({"desciption": "x"}, "desciption"),
]


@pytest.mark.parametrize(("fields", "why"), REFUSED, ids=range(len(REFUSED)))
def test_it_refuses_what_could_not_run_and_saves_nothing(api, fields, why):
    taken = make_schedule("taken")
    schedule = make_schedule("it", policy={"remaining_runs": 9})
    before, status = rows(), 409 if fields == {"name": "taken"} else 422
    assert why in sentence(send(api, "POST", "", NEW | fields), status)
    assert why in sentence(send(api, "PUT", f"/{schedule.pk}", NEW | fields), status)
    if fields != {"timing": None}:  # which leaves the timing alone
        assert why in sentence(send(api, "PATCH", f"/{schedule.pk}", fields), status)
    assert rows() == before
    assert taken.pk != schedule.pk


@pytest.mark.parametrize("text", ["{", '{"name": NaN}', '{"a": 1, "a": 2}', '{"name": "\\ud800"}', "[" * 3000, "\xff"])
def test_it_refuses_what_is_not_json(api, text):
    answer = api.post(ROOT, text.encode("latin-1"), "application/json")
    assert "not valid JSON" in sentence(answer, 400)


def test_it_names_the_place_of_each_fault(api):
    faults = send(api, "POST", "", {**NEW, "priority": 999, "policy": {"jitter": -1}}).json()["errors"]
    assert [fault["place"] for fault in faults] == ["body/priority", "body/policy/jitter"]


@pytest.mark.parametrize("body", [[], "x", 5, None, {}])
def test_it_refuses_a_body_of_another_form(api, body):
    sentence(api.post(ROOT, json.dumps(body), "application/json"))
    assert not PeriodicTask.objects.exists()


def test_it_keeps_the_name_of_a_schedule_from_the_settings(api):
    schedule = make_schedule("theirs", policy={"entry": "{}", "owner": "shop"})
    assert "CELERY_BEAT_SCHEDULE" in sentence(send(api, "PATCH", f"/{schedule.pk}", {"name": "mine"}))
    shown = send(api, "PATCH", f"/{schedule.pk}", {"name": "theirs", "description": "x"}).json()
    assert (shown["name"], shown["description"], shown["source"]) == ("theirs", "x", "shop")


def test_it_shares_the_row_of_a_timing(api):
    for name in ("a", "b"):
        assert send(api, "POST", "", {**NEW, "name": name}).status_code == 201
    assert IntervalSchedule.objects.count() == 1
    first = PeriodicTask.objects.get(name="a")
    send(api, "PATCH", f"/{first.pk}", {"timing": {"every": "2 hours"}})
    assert {schedule.interval.every for schedule in PeriodicTask.objects.all()} == {1, 2}


def test_it_deletes_a_schedule_and_keeps_its_runs(api):
    schedule = make_schedule()
    run = make_run(schedule, State.SUCCEEDED)
    assert send(api, "DELETE", f"/{schedule.pk}").status_code == 204
    assert send(api, "DELETE", f"/{schedule.pk}").status_code == 404
    assert not PeriodicTask.objects.exists()
    run.refresh_from_db()
    assert run.schedule_name == "it"


# --- timings and moments --------------------------------------------------------------------------------------------


def test_it_previews_a_timing_and_saves_nothing(api):
    before = rows()
    form = {"timing": {"crontab": "0 0 13 * 5", "zone": "UTC"}, "job": "tests.nothin", "number": 2}
    shown = send(api, "POST", "/preview", form).json()
    assert [due[8:16] for due in shown["due"]] == ["13T00:00"] * 2
    assert "13th" in shown["words"]
    assert any("cron would be due on days that match either" in warning for warning in shown["warnings"])
    assert any("Did you mean 'tests.nothing'?" in warning for warning in shown["warnings"])
    assert rows() == before


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ({}, "timing"),
        ({"timing": {"every": "x"}}, "cannot be read"),
        ({"timing": {"every": 60}, "number": 1001}, "less than or equal to 1000"),
        ({"timing": {"every": 60}, "arguments": [1]}, "dictionary"),
        ({"timing": {"every": 60}, "wat": 1}, "wat"),
    ],
)
def test_it_refuses_to_preview_what_it_does_not_understand(api, form, why):
    assert why in sentence(send(api, "POST", "/preview", form))


def test_it_tells_what_happened_at_a_moment(api):
    schedule = make_schedule("hourly", cron={"minute": "0"})
    due_at = database_now().replace(minute=0, second=0, microsecond=0) - HOUR
    run = make_run(schedule, State.FAILED, due_at=due_at, last_due_at=due_at, reason="ValueError: no")
    Policy.objects.update(timing_since=due_at - HOUR, known_since=due_at - HOUR)

    def ask(at: str) -> Any:
        return api.get(f"{ROOT}/{schedule.pk}/what-happened", {"at": at})

    answer = ask((due_at + timedelta(seconds=30)).isoformat()).json()
    assert (answer["run"], answer["due_at"]) == (str(run.id), due_at.isoformat())
    assert "failed" in answer["sentence"]
    assert (
        ask("9999-12-31T23:59:59Z").json()["sentence"]
        == "No schedule is due before the year 2 or after the year 9998: choose another moment."
    )
    assert "add the offset" in sentence(ask("2026-01-01T00:00:00"))
    assert "ISO 8601" in sentence(ask("noon"))


# --- lists ----------------------------------------------------------------------------------------------------------


def names(api, **filters: Any) -> list[str]:
    answer = api.get(ROOT, filters)
    assert answer.status_code == 200, answer.content
    return [item["name"] for item in answer.json()["items"]]


def test_it_filters_schedules(api):
    make_schedule("plain")
    make_schedule("off", enabled=False)
    make_schedule("paused", policy={"paused_at": database_now()})
    make_schedule("was paused", policy={"paused_at": database_now() - HOUR, "paused_until": database_now()})
    make_schedule("bad", cron={"day_of_month": "31", "month_of_year": "2"})
    make_schedule("ours", policy={"entry": "{}"})
    make_schedule("100% Quick", "jobs.heartbeat", queue="quick")
    Policy.objects.filter(pk=make_schedule("just created").pk).delete()
    everything = ["100% Quick", "bad", "just created", "off", "ours", "paused", "plain", "was paused"]
    for filters, found in (
        ({}, everything),
        ({"enabled": "false"}, ["off"]),
        ({"paused": "true"}, ["paused"]),
        ({"flagged": "true"}, ["bad"]),
        ({"from_settings": "true"}, ["ours"]),
        ({"job": "jobs.heartbeat"}, ["100% Quick"]),
        ({"queue": "quick"}, ["100% Quick"]),
        ({"name": "PAUSE"}, ["paused", "was paused"]),
        ({"name": "0%"}, ["100% Quick"]),
        ({"name": "_"}, []),
        (
            {"enabled": "true", "flagged": "false", "paused": "false", "from_settings": "false", "queue": "quick"},
            ["100% Quick"],
        ),
    ):
        assert sorted(names(api, **filters)) == found, filters
        [opposite] = filters or [None] if len(filters) < 2 else [None]
        if opposite in {"enabled", "paused", "flagged", "from_settings"}:
            other = {opposite: "false" if filters[opposite] == "true" else "true"}
            assert sorted([*names(api, **other), *found]) == everything


def test_it_lists_page_by_page(api):
    for number in range(7):
        make_schedule(f"s{number}")
    pages, address = [], f"{ROOT}?limit=3&enabled=true"
    while address:
        answer = api.get(address).json()
        pages.append([item["name"] for item in answer["items"]])
        address = answer["next"]
        PeriodicTask.objects.filter(name="s0").delete()
    assert pages == [["s0", "s1", "s2"], ["s3", "s4", "s5"], ["s6"]]


def test_it_lists_the_longest_names_page_by_page(api):
    names_ = ["\U0001f600" * 199 + str(number) for number in range(3)]
    for name in names_:
        make_schedule(name)
    first = api.get(f"{ROOT}?limit=2").json()
    assert [item["name"] for item in first["items"] + api.get(first["next"]).json()["items"]] == names_


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "cursor=x", "enabled=perhaps", "name=%00", "wat=1", "queue=" + "x" * 201],
)
def test_it_refuses_a_list_that_it_does_not_understand(api, query):
    sentence(api.get(f"{ROOT}?{query}"))


def test_it_sends_no_further_queries_for_further_schedules(api):
    asked = []
    for number in (1, 20):
        for each in range(number):
            make_run(make_schedule(f"s{number} {each}"), State.SUCCEEDED)
        with CaptureQueriesContext(connection) as queries:
            assert len(names(api)) >= number
        asked.append(len(queries))
    assert asked[1] <= asked[0]


def test_it_shows_the_last_run(api):
    schedule = make_schedule()
    due_at = database_now() - HOUR
    run = make_run(schedule, State.FAILED, due_at=due_at, started_at=due_at, reason="ValueError: no")
    make_run(schedule, State.SUCCEEDED, due_at=due_at - HOUR)
    make_run(schedule, State.SUCCEEDED, trigger=Trigger.BACKFILL)
    for shown in (send(api, "GET", f"/{schedule.pk}").json(), send(api, "GET", "").json()["items"][0]):
        last = shown["last_run"]
        assert (last["id"], last["state"], last["reason"]) == (str(run.id), "failed", "ValueError: no")
        assert last["due_at"] == due_at.isoformat()


# --- acts -----------------------------------------------------------------------------------------------------------


def test_it_enables_disables_pauses_resumes_and_skips(api):
    schedule = make_schedule(enabled=False)
    until = database_now().replace(microsecond=0) + timedelta(days=2)

    def act(name: str, body: Any = None) -> Any:
        answer = send(api, "POST", f"/{schedule.pk}/{name}", body)
        assert answer.status_code == 200, answer.content
        return answer.json()

    assert act("enable")["enabled"] is True
    paused = act("pause", {"reason": "audit", "until": until.isoformat(), "catch_up": "latest"})
    assert paused["status"] == f"paused by ada until {until:%Y-%m-%d %H:%M:%S} UTC: audit"
    pause = paused["pause"]
    assert (pause["by"], pause["reason"], pause["until"], pause["catch_up"]) == (
        "ada",
        "audit",
        until.isoformat(),
        "latest",
    )
    assert act("pause")["pause"]["until"] is None
    assert act("resume")["pause"] is None
    assert act("skip", {"moments": 3})["skip_next"] == 3
    assert act("disable")["status"] == "disabled"
    entries = AuditEntry.objects.order_by("pk").values_list("act", "actor", "door", "key")
    assert list(entries) == [
        (name, "ada", "api", str(schedule.pk)) for name in ("enable", "pause", "pause", "resume", "skip", "disable")
    ]


@pytest.mark.parametrize(
    ("act", "body", "why"),
    [
        ("pause", {"until": "2001-01-01T00:00:00Z"}, "next hundred years"),
        ("pause", {"until": "9999-01-01T00:00:00Z"}, "next hundred years"),
        ("pause", {"until": "2030-01-01"}, "offset"),
        ("pause", {"reason": "two\nlines"}, "one line"),
        ("pause", {"reason": "x" * 501}, "at most 500"),
        ("pause", {"catch_up": "some"}, "latest"),
        ("skip", None, "required"),
        ("skip", {"moments": -1}, "greater than or equal to 0"),
        ("skip", {"moments": 10**30}, "less than or equal to 10000"),
        ("skip", {"moments": True}, "integer"),
        ("backfill", {"start": "2026-01-01T00:00:00Z"}, "required"),
        ("backfill", {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, "ends after it starts"),
        ("backfill", {"start": "0001-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, "after 1970"),
        ("backfill", {"start": "1971-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, "more than 10000"),
        ("backfill/preview", {"start": "2026-01-01T00:00:00Z", "end": "9999-01-01T00:00:00Z"}, "in the past"),
        ("backfill", {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z", "at_once": 0}, "greater than"),
    ],
)
def test_it_refuses_an_act_with_invalid_values(api, act, body, why):
    schedule = make_schedule(cron={"minute": "*"})
    before = rows()
    assert why in sentence(send(api, "POST", f"/{schedule.pk}/{act}", body))
    assert rows() == before


def test_it_runs_a_schedule_once_for_each_key(api):
    schedule = make_schedule("it", "tests.nothing")
    first, again, other = (
        send(api, "POST", f"/{schedule.pk}/run", **{"Idempotency-Key": key}) for key in ("a", "a", "b")
    )
    assert [answer.status_code for answer in (first, again, other)] == [202, 200, 202]
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert first["Location"] == f"/api/runs/{first.json()['id']}"
    assert send(api, "POST", f"/{schedule.pk}/run").status_code == 202
    runs = Run.objects.order_by("id")
    assert [(run.schedule_id, run.trigger, run.actor) for run in runs] == [(schedule.pk, "api", "ada")] * 3
    assert AuditEntry.objects.filter(act="run").count() == 3


def test_it_does_not_run_a_schedule_that_cannot_be_sent(api):
    schedule = make_schedule()
    PeriodicTask.objects.update(task="gone")
    assert "No job is named 'gone'" in sentence(send(api, "POST", f"/{schedule.pk}/run"), 409)


def test_it_backfills_once_for_each_key(api):
    schedule = make_schedule("it", every=HOUR, start_time=START)
    range_ = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T03:00:00+00:00"}
    seen = send(api, "POST", f"/{schedule.pk}/backfill/preview", range_).json()
    assert seen["number"] == len(seen["moments"]) == 3
    assert seen["moments"][1] == {"due_at": "2026-01-01T01:00:00+00:00", "window_start": "2026-01-01T00:00:00+00:00"}
    assert not Run.objects.exists()

    def ask(key: str, **fields: Any) -> Any:
        return send(api, "POST", f"/{schedule.pk}/backfill", range_ | fields, **{"Idempotency-Key": key})

    first, again = ask("a"), ask("a")
    assert [answer.status_code for answer in (first, again)] == [202, 200]
    assert first.json() == again.json()
    assert first.json()["number"] == 3
    assert "another backfill" in sentence(ask("a", at_once=2), 409)
    assert ask("b").json()["number"] == 0  # they are under way
    assert ask("c", which="all", at_once=1000).status_code == 202
    assert Run.objects.filter(backfill=first.json()["id"]).count() == 3
    assert [run.actor for run in Run.objects.all()] == ["ada"] * 3


@only_where_rows_are_locked
@pytest.mark.django_db(transaction=True)
def test_it_changes_a_schedule_as_another_request_has_left_it(api):
    schedule, answers = make_schedule(every=HOUR), []
    later = (database_now() + 24 * HOUR).isoformat()
    with transaction.atomic():
        PeriodicTask.objects.filter(pk=schedule.pk).update(expire_seconds=60)
        request = blocked(lambda: answers.append(send(api, "PATCH", f"/{schedule.pk}", {"expires": later})))
    request.join(DEADLINE)
    assert "expire" in sentence(answers[0])  # the two exclude each other
    assert PeriodicTask.objects.get().expires is None


@only_where_rows_are_locked
@pytest.mark.django_db(transaction=True)
def test_it_refuses_a_key_that_belongs_to_a_backfill_of_another_schedule(api):
    one, other = (make_schedule(name, every=HOUR, start_time=START) for name in ("one", "other"))
    range_ = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T03:00:00Z"}
    answers = []
    ask = partial(send, api, "POST", body=range_, **{"Idempotency-Key": "a"})
    with transaction.atomic():
        assert ask(address=f"/{one.pk}/backfill").status_code == 202
        request = blocked(lambda: answers.append(ask(address=f"/{other.pk}/backfill")))
    request.join(DEADLINE)
    assert "another backfill" in sentence(answers[0], 409)
    assert set(Run.objects.values_list("schedule", flat=True)) == {one.pk}


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_it_hides_the_schedules_that_a_token_may_not_see(client):
    mine, theirs = make_schedule("mine", "tests.nothing"), make_schedule("theirs", "jobs.heartbeat")
    user = User.objects.create_superuser("ada")
    scopes = [f"django_celery_beat.{may}_periodictask" for may in ("view", "add", "change", "delete")]
    _, secret = ApiToken.objects.issue("shop", user, scopes, Actor.of_user(user), jobs=["tests.nothing"])
    bearer = {"Authorization": f"Bearer {secret}"}
    listed = send(client, "GET", "", **bearer).json()["items"]
    assert [item["name"] for item in listed] == ["mine"]
    range_ = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T03:00:00Z"}
    before = rows()
    for method, place, body in (
        ("GET", "", None),
        ("GET", "/what-happened?at=2026-01-01T00:00:00Z", None),
        ("PATCH", "", {"description": "x"}),
        ("PUT", "", NEW),
        ("DELETE", "", None),
        *(("POST", f"/{act}", None) for act in ("enable", "disable", "pause", "resume", "run")),
        ("POST", "/skip", {"moments": 1}),
        ("POST", "/backfill", range_),
        ("POST", "/backfill/preview", range_),
    ):
        assert "There is no schedule" in sentence(send(client, method, f"/{theirs.pk}{place}", body, **bearer), 404)
    assert "limited to other" in sentence(send(client, "POST", "", {**NEW, "job": "jobs.heartbeat"}, **bearer), 403)
    assert "limited to other" in sentence(
        send(client, "PATCH", f"/{mine.pk}", {"job": "jobs.heartbeat"}, **bearer), 403
    )
    assert rows() == before
    assert send(client, "PATCH", f"/{mine.pk}", {"description": "x"}, **bearer).status_code == 200
    assert AuditEntry.objects.get(act="change").token == "shop"
