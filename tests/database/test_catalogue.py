"""Do the ready-made jobs do what their names say, and does the demonstration schedule them?

The jobs are called as plain functions against a real web server on loopback, which plays this site.
"""

import inspect
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.db import connection
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs import tasks
from jobs.local import demo
from jobs.models import FeedEntry
from jobs.tasks.heartbeat import heartbeat
from jobs.tasks.import_feed import LARGEST_FEED, MAX_ENTRIES, import_feed
from jobs.toolkit import confined, http
from project import health
from project.celery import app
from tests.database.conftest import SAMPLE
from tests.web import Web


def rss(*items: str) -> bytes:
    return f"<rss version='2.0'><channel>{''.join(f'<item>{item}</item>' for item in items)}</channel></rss>".encode()


def in_own_connection(call: Callable[[], object]) -> None:
    try:
        call()
    finally:
        connection.close()


# --- import_feed ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_it_stores_every_entry_when_a_feed_is_imported(web: Web) -> None:
    assert import_feed("/feed") == {"seen": 5, "new": 5}
    entry = FeedEntry.objects.get(guid="punctual-word-claim")
    assert (entry.feed, entry.title) == ("/feed", "Claim")
    assert entry.link == "https://example.org/punctual/words/claim"
    assert entry.published_at == datetime(2026, 11, 3, 9, tzinfo=UTC)


@pytest.mark.django_db
def test_it_adds_only_new_entries_when_a_feed_is_imported_again(web: Web) -> None:
    web.pages["/feed"] = rss("<guid>a</guid><title>first</title>")
    import_feed("/feed")
    web.pages["/feed"] = rss("<guid>b</guid><title>second</title>", "<guid>a</guid><title>changed</title>")
    assert import_feed("/feed") == {"seen": 2, "new": 1}
    assert dict(FeedEntry.objects.values_list("guid", "title")) == {"a": "first", "b": "second"}


@pytest.mark.django_db
def test_it_writes_nothing_when_no_entry_is_new(web: Web, django_assert_num_queries: Callable[[int], Any]) -> None:
    import_feed("/feed")
    with django_assert_num_queries(1):
        assert import_feed("/feed") == {"seen": 5, "new": 0}


@pytest.mark.django_db
def test_it_stores_an_entry_once_for_each_feed_when_two_feeds_share_it(web: Web) -> None:
    web.pages["/other"] = SAMPLE
    assert [import_feed(url)["new"] for url in ("/feed", "/other")] == [5, 5]


@pytest.mark.django_db(transaction=True)
def test_it_stores_each_entry_once_when_another_import_comes_between(web: Web) -> None:
    rivals: list[threading.Thread] = []

    def import_elsewhere(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        found = execute(sql, *arguments)
        if sql.startswith("SELECT") and not rivals:
            rivals.append(threading.Thread(target=in_own_connection, args=[lambda: import_feed("/feed")]))
            rivals[0].start()
            rivals[0].join()
        return found

    with connection.execute_wrapper(import_elsewhere):
        import_feed("/feed")
    assert (len(rivals), FeedEntry.objects.count()) == (1, 5)


@pytest.mark.django_db
def test_it_reads_atom_when_the_feed_is_atom(web: Web) -> None:
    web.pages["/atom"] = b"""<feed xmlns="http://www.w3.org/2005/Atom"><title>t</title><entry><id>urn:a</id>
        <title>Entry</title><link href="page"/><updated>2026-11-03T10:00:00+02:00</updated></entry></feed>"""
    assert import_feed("/atom") == {"seen": 1, "new": 1}
    entry = FeedEntry.objects.get()
    assert (entry.guid, entry.title) == ("urn:a", "Entry")
    assert entry.link == f"http://127.0.0.1:{web.server_address[1]}/page"
    assert entry.published_at == datetime(2026, 11, 3, 8, tzinfo=UTC)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("stated", "kept"),
    [
        ("<pubDate>Tue, 03 Nov 2026 09:00:00 +0200</pubDate>", datetime(2026, 11, 3, 7, tzinfo=UTC)),
        ("<pubDate>Tue, 03 Nov 2026 09:00:00</pubDate>", datetime(2026, 11, 3, 9, tzinfo=UTC)),
        ("<pubDate>2026-11-03T09:00:00</pubDate>", datetime(2026, 11, 3, 9, tzinfo=UTC)),
        ("<pubDate>Tue, 03 Nov 2026 99:00:00</pubDate>", None),
        ("<pubDate>soon</pubDate>", None),
        ("<pubDate>0001-01-01T00:00:00Z</pubDate>", None),
        ("<pubDate>9999-12-31T23:59:59Z</pubDate>", None),
        ("", None),
    ],
)
def test_it_stores_the_time_in_utc_when_an_entry_has_one(web: Web, stated: str, kept: datetime | None) -> None:
    web.pages["/feed"] = rss(f"<guid>a</guid>{stated}")
    import_feed("/feed")
    assert FeedEntry.objects.get().published_at == kept


@pytest.mark.django_db
def test_it_stores_as_much_as_it_can_when_an_entry_is_odd(web: Web) -> None:
    long = "x" * 3000
    web.pages["/feed"] = rss(
        f"<guid>{long}1</guid><title>{long}</title><link>https://example.org/{long}</link>",
        f"<guid>{long}2</guid><title>nul \0 and half \ud83d</title>".encode(errors="surrogatepass").decode("latin-1"),
        "<guid>a&#0;b</guid><title>reference &#0;</title>",
        "<guid>c</guid>",
        "<link>https://example.org/no-guid</link>",
        "<title>only a title</title>",
        "<description>nothing to know it by</description>",
    )
    assert import_feed("/feed") == {"seen": 6, "new": 6}
    assert import_feed("/feed") == {"seen": 6, "new": 0}
    by_guid = {entry.guid: entry for entry in FeedEntry.objects.all()}
    hashed = [guid for guid in by_guid if len(guid) == 64]
    assert len(hashed) == 2
    assert {"c", "https://example.org/no-guid", "only a title"} < set(by_guid)
    assert "x" * 500 in {entry.title for entry in by_guid.values()}
    assert not any("\0" in entry.title + entry.guid for entry in by_guid.values())


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("https://example.org/a?b=1&amp;c", "https://example.org/a?b=1&c"),
        ("page", "{site}/news/page"),
        ("/page", "{site}/page"),
        ("javascript:alert(1)", ""),
        ("http://[", ""),
        (f"https://example.org/{'x' * 2000}", ""),
        ("", ""),
    ],
)
def test_it_stores_the_link_when_people_can_follow_it(web: Web, link: str, kept: str) -> None:
    web.pages["/news/feed"] = rss(f"<guid isPermaLink='false'>a</guid><link>{link}</link>")
    import_feed("/news/feed")
    assert FeedEntry.objects.get().link == kept.format(site=f"http://127.0.0.1:{web.server_address[1]}")


@pytest.mark.django_db
def test_it_says_that_the_feed_cannot_be_read_when_the_parser_fails(web: Web) -> None:
    web.pages["/feed"] = rss("<guid>a</guid><title>&#xD800;</title>")
    with pytest.raises(ValueError, match="The feed cannot be read"):
        import_feed("/feed")


@pytest.mark.django_db
def test_it_stops_at_its_limit_when_a_feed_is_long(web: Web) -> None:
    web.pages["/feed"] = rss(*[f"<guid>{number}</guid>" for number in range(MAX_ENTRIES + 1)])
    assert import_feed("/feed") == {"seen": MAX_ENTRIES, "new": MAX_ENTRIES}
    assert not FeedEntry.objects.filter(guid=str(MAX_ENTRIES)).exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "body", [b"", b"<html><body><h1>Not a feed</h1></body></html>", b'{"items": []}', bytes(range(256))]
)
def test_it_says_so_when_the_response_is_not_a_feed(web: Web, body: bytes) -> None:
    web.pages["/feed"] = body
    with pytest.raises(ValueError, match="not an RSS or Atom feed"):
        import_feed("/feed")


ITUNES = b'<rss version="2.0" xmlns:itunes="http://www.itunes.com/dtds/podcast-1.0.dtd"><channel>'
NUMBERS = [b"%d" % number for number in range(60_000)]
HOSTILE_FEEDS = {
    "attributes of a tag": b"<rss><channel><item %s/>" % b" ".join(b'a%s="x"' % each for each in NUMBERS),
    "categories of an entry": b"<rss><channel><item><category>%s" % b"</category><category>".join(NUMBERS),
    "keywords of an entry": ITUNES + b"<item><itunes:keywords>%s</itunes:keywords>" % b",".join(NUMBERS),
    "namespaces and tags": b'<feed xmlns="http://www.w3.org/2005/Atom"><entry><content type="xhtml" %s>%s'
    % (b" ".join(b'xmlns:a%s="http://x/%s"' % (each, each) for each in NUMBERS[:5_000]), b"<p>x</p>" * 30_000),
}


@pytest.mark.django_db
@pytest.mark.parametrize("name", HOSTILE_FEEDS)
def test_it_says_so_when_a_feed_keeps_the_parser_busy(web: Web, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "SECONDS", 1)
    web.pages["/feed"] = HOSTILE_FEEDS[name]
    with pytest.raises(ValueError, match=r"cannot be read: reading it takes more than 1 s or .* Ask its publisher"):
        import_feed("/feed")


@pytest.mark.parametrize("argument", ["text/xml\0", "x" * 3_000_000])
def test_it_refuses_a_content_type_that_no_process_can_be_given(argument: str) -> None:
    with pytest.raises(confined.RefusedError, match=r"^The content type.* 10,000 characters\.$"):
        confined.parse("feed", b"", argument, "10")


@pytest.mark.django_db
def test_it_reads_a_feed_without_settings_and_connections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spy = "import os, json\nclass Refused(ValueError): ...\ndef read(content):\n"
    spy += "    return json.dumps([sorted(os.environ), sorted(os.listdir('/proc/self/fd'))]).encode()"
    (tmp_path / "spy.py").write_text(spy)
    monkeypatch.setattr(confined, "PARSERS", tmp_path)
    monkeypatch.setenv("JOB_SECRET_it", "s3cret-s3cret")
    connection.ensure_connection()
    variables, descriptors = json.loads(confined.parse("spy", b""))
    assert set(variables) <= {*confined.KEPT, "LC_CTYPE"}
    assert len(descriptors) <= 4  # the three standard ones, and the folder being listed


@pytest.mark.django_db
def test_it_opens_nothing_when_a_feed_names_a_file(web: Web, tmp_path: Path) -> None:
    secret = tmp_path / "secret.xml"
    secret.write_bytes(rss("<guid>a</guid><title>s3cret</title>"))
    web.pages["/path"] = str(secret).encode()
    with pytest.raises(ValueError, match="not an RSS or Atom feed"):
        import_feed("/path")
    reference = f"<!DOCTYPE rss [<!ENTITY a SYSTEM '{secret.as_uri()}'>]>".encode()
    web.pages["/entity"] = reference + rss("<guid>b</guid><title>it says &a;</title>")
    import_feed("/entity")
    assert "s3cret" not in FeedEntry.objects.get(guid="b").title


@pytest.mark.django_db
def test_it_imports_nothing_when_the_feed_cannot_be_fetched(web: Web) -> None:
    web.pages["/large"] = b"x" * (LARGEST_FEED + 1)
    with pytest.raises(http.UnexpectedStatus, match="/none answered 404 instead of 200"):
        import_feed("/none")
    with pytest.raises(http.TooLarge):
        import_feed("/large")
    with pytest.raises(http.Refused):
        import_feed("http://localhost:9/feed")
    for url in (5, None, "/" + "x" * 500):
        with pytest.raises(ValueError, match=r"valid string|at most 500 characters"):
            import_feed(url)
    assert not FeedEntry.objects.exists()


# --- heartbeat and the list -----------------------------------------------------------------------------------------


def test_it_logs_a_line_for_a_heartbeat(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "jobs.tasks")
    heartbeat()
    assert caplog.messages == ["Alive."]


def test_it_finds_every_ready_made_job_when_celery_looks_for_them() -> None:
    app.loader.import_default_modules()
    files = sorted(path.stem for path in Path(tasks.__file__).parent.glob("[a-z]*.py"))
    assert tasks.__all__ == files
    assert {f"jobs.{name}" for name in files} <= set(app.tasks)


def test_it_keeps_each_job_short_and_opens_it_with_its_story() -> None:
    for path in Path(tasks.__file__).parent.glob("[a-z]*.py"):
        source = path.read_text()
        assert source.startswith('"""'), path
        assert len(source.splitlines()) < 120, path


# --- The demonstration ----------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_it_installs_each_schedule_once_when_called_twice() -> None:
    demo.install()
    demo.install()
    names = ["Check this site", "Heartbeat", "Import the sample feed"]
    assert list(PeriodicTask.objects.order_by("name").values_list("name", flat=True)) == names
    assert IntervalSchedule.objects.count() == 3


@pytest.mark.django_db
def test_it_leaves_edits_alone_when_it_installs_again() -> None:
    demo.install()
    every_minute = IntervalSchedule.objects.create(every=1, period="minutes")
    PeriodicTask.objects.filter(name="Heartbeat").update(interval=every_minute, enabled=False)
    demo.install()
    edited = PeriodicTask.objects.get(name="Heartbeat")
    assert (edited.interval, edited.enabled) == (every_minute, False)


@pytest.mark.django_db
def test_it_uses_any_interval_when_several_are_equal() -> None:
    IntervalSchedule.objects.bulk_create([IntervalSchedule(every=5, period="seconds") for _ in range(2)])
    demo.install()
    assert IntervalSchedule.objects.filter(every=5).count() == 2


@pytest.mark.django_db
def test_it_schedules_existing_jobs_with_valid_arguments_and_addresses() -> None:
    app.loader.import_default_modules()
    demo.install()
    for schedule in PeriodicTask.objects.all():
        arguments = json.loads(schedule.kwargs)
        inspect.signature(app.tasks[schedule.task].run).bind(**arguments)
    addresses = {json.loads(schedule.kwargs).get("url") for schedule in PeriodicTask.objects.all()}
    assert addresses == {None, "/livez", "/static/jobs/sample-feed.xml"}
    assert health.LIVE == "/livez"
    assert finders.find("jobs/sample-feed.xml")
