"""Who may do what, through which door: one table, and each of its cells tried through the real door.

A refused act changes nothing and writes no audit entry. An allowed one writes one entry, with the right actor, door and
token; what it changes is shown by the tests of the acts.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs.alerts import acts as telling
from jobs.ledger import backfills, requests, webhooks
from jobs.models import (
    KINDS,
    ApiToken,
    AuditEntry,
    Backfill,
    Channel,
    Policy,
    ResourceVersion,
    Run,
    Silence,
    State,
    StoredFile,
    WebhookSource,
    database_now,
    rights,
)
from jobs.models.audit import NEEDED, Actor, Door
from jobs.rules.errors import Forbidden
from jobs.schedules import acts
from jobs.toolkit import files, uploads
from jobs.worker import resources
from tests.database.test_admin import NEW, RUNS, SCHEDULES, act, backfill_fields, form, hidden_of
from tests.database.test_commands import call
from tests.making import make_run, make_schedule
from tests.pure.test_signatures import PLAIN

pytestmark = pytest.mark.django_db

FREE, RESTRICTED = "jobs.process_upload", "jobs.thumbnails"
BACKUP = "jobs.backup_database"
OF_SOURCE = {FREE: "tests.nothing", RESTRICTED: "tests.note_webhook"}  # jobs that take a webhook, as free as these
HOUR = timedelta(hours=1)
FILES = reverse("admin:jobs_storedfile_changelist")

# "." nothing, "f" only for the job without a right of its own, "r" only for the restricted job, "b" for both.
# The session and the admin know these users; a token is one of the holder, with:
#   whole     all permissions of the user       of_job       all, limited to the free job
#   viewing   the permissions to view           of_schedule  all, limited to the schedule of the restricted job
#   no_right  all but the rights for jobs       lost         all, but the user has lost them
# Tokens that are expired or revoked, or whose user is disabled, may do nothing.
TABLE = """
                        anonymous viewer changer holder root   whole viewing no_right of_job of_schedule lost dead
schedule add            .         .      f       b      b      b     .       f        f      .           .    .
schedule change         .         .      f       b      b      b     .       f        f      r           .    .
schedule delete         .         .      f       b      b      b     .       f        f      r           .    .
schedule enable         .         .      f       b      b      b     .       f        f      r           .    .
schedule disable        .         .      f       b      b      b     .       f        f      r           .    .
schedule pause          .         .      f       b      b      b     .       f        f      r           .    .
schedule resume         .         .      f       b      b      b     .       f        f      r           .    .
schedule skip           .         .      f       b      b      b     .       f        f      r           .    .
schedule retime         .         .      f       b      b      b     .       f        f      r           .    .
schedule run            .         .      f       b      b      b     .       f        f      r           .    .
schedule backfill       .         .      f       b      b      b     .       f        f      r           .    .
run start               .         .      f       b      b      b     .       f        f      .           .    .
run retry               .         .      f       b      b      b     .       f        f      r           .    .
run cancel              .         .      f       b      b      b     .       f        f      r           .    .
file upload             .         .      b       b      b      b     .       b        b      b           .    .
file process            .         .      f       b      b      b     .       f        f      .           .    .
file delete             .         .      f       b      b      b     .       f        .      .           .    .
resource invalidate     .         .      b       b      b      b     .       b        b      b           .    .
token add               .         .      b       b      b      .     .       .        .      .           .    .
token revoke            .         .      b       b      b      b     .       b        b      b           .    .
token delete            .         .      b       b      b      b     .       b        b      b           .    .
webhook source add      .         .      f       b      b      b     .       f        f      .           .    .
webhook source change   .         .      f       b      b      b     .       f        f      .           .    .
webhook source delete   .         .      f       b      b      b     .       f        f      .           .    .
channel add             .         .      b       b      b      b     .       b        .      .           .    .
channel change          .         .      b       b      b      b     .       b        .      .           .    .
channel delete          .         .      b       b      b      b     .       b        .      .           .    .
channel test            .         .      b       b      b      b     .       b        .      .           .    .
silence add             .         .      b       b      b      b     .       b        f      r           .    .
silence change          .         .      b       b      b      b     .       b        f      r           .    .
silence delete          .         .      b       b      b      b     .       b        f      r           .    .
"""
HEAD, *LINES = [line.split() for line in TABLE.strip().splitlines()]
MAY = {" ".join(line[: -len(HEAD)]): dict(zip(HEAD, line[-len(HEAD) :], strict=True)) for line in LINES}
ALLOWS = {".": set(), "f": {FREE}, "r": {RESTRICTED}, "b": {FREE, RESTRICTED}}
DEAD = {"expired", "revoked", "disabled"}


@dataclass
class Rows:
    """What the acts are done to: rows of one job."""

    job: str
    file: StoredFile = field(init=False)
    schedule: PeriodicTask = field(init=False)
    failed: Run = field(init=False)
    waiting: Run = field(init=False)
    source: WebhookSource = field(init=False)
    channel: Channel = field(init=False)
    silence: Silence = field(init=False)

    def __post_init__(self) -> None:
        kind = StoredFile.Kind.BACKUP if self.job == RESTRICTED else StoredFile.Kind.UPLOAD
        self.upload = StoredFile.objects.create(name="a.png", file=f"uploads/{self.job}", size=1)
        self.file = StoredFile.objects.create(name="b", file=f"kept/{self.job}", size=1, kind=kind)
        arguments = {"file": str(self.upload.pk)}
        paused = {"paused_at": database_now()}
        self.schedule = make_schedule(self.job, self.job, cron={"minute": "30"}, kwargs=arguments, policy=paused)
        of_job = {"task": self.job, "kwargs": arguments}
        self.failed = make_run(self.schedule, State.FAILED, **of_job)
        self.waiting = make_run(self.schedule, **of_job)
        self.source = WebhookSource.objects.create(
            name=self.job.partition(".")[2],
            form="github",
            keys="SHOP",
            job=OF_SOURCE[self.job],
            arguments={"path": "x"},
        )
        self.channel = Channel.objects.create(name=self.job, addresses=["ada@example.org"])
        ends_at = database_now() + HOUR
        self.silence = Silence.objects.create(schedule=self.schedule, ends_at=ends_at, created_by="ada")

    @property
    def silences(self) -> Any:
        return Silence.objects.filter(pk=self.silence.pk)

    @property
    def channels(self) -> Any:
        return Channel.objects.filter(pk=self.channel.pk)

    @property
    def new_silence(self) -> Silence:
        return Silence(schedule=self.schedule, ends_at=database_now() + HOUR)

    @property
    def new_source(self) -> dict[str, Any]:
        return {"name": "new", "form": "github", "keys": "SHOP", "job": self.source.job, "arguments": {"path": "x"}}

    @property
    def schedules(self) -> Any:
        return PeriodicTask.objects.filter(pk=self.schedule.pk)

    @property
    def arguments(self) -> dict[str, str]:
        return {"file": str(self.upload.pk)}


@pytest.fixture
def users(settings, tmp_path) -> dict[str, User]:
    settings.RESTRICTED_JOBS = [RESTRICTED, BACKUP, OF_SOURCE[RESTRICTED]]
    settings.WEBHOOK_KEYS = {"SHOP": [PLAIN]}
    settings.MEDIA_ROOT = tmp_path
    rights.make_permissions()
    made = {name: User.objects.create_user(name, is_staff=True) for name in ("viewer", "changer", "holder")}
    ours = Permission.objects.filter(content_type__app_label__in=["jobs", "django_celery_beat"])
    made["viewer"].user_permissions.set(ours.filter(codename__startswith="view_"))
    made["changer"].user_permissions.set(ours.exclude(codename__startswith=rights.PREFIX))
    made["holder"].user_permissions.set(ours)
    made["root"] = User.objects.create_superuser("root")
    return made


@pytest.fixture
def rows(users) -> dict[str, Rows]:
    IntervalSchedule.objects.create(every=3600, period="seconds")
    ResourceVersion.objects.create(name="prices")
    ApiToken.objects.issue("other", users["root"], ["jobs.view_run"], "test")
    made = {job: Rows(job) for job in (FREE, RESTRICTED)}
    AuditEntry.objects.all().delete()
    return made


def channel_page(rows: Rows) -> str:
    return reverse("admin:jobs_channel_change", args=[rows.channel.pk])


def other() -> ApiToken:
    """A token of another user than the sender of a request."""
    return ApiToken.objects.get(name="other")


def stored() -> list[Any]:
    """Every row that an act could change."""
    models = (PeriodicTask, Policy, *KINDS.values(), Run, Backfill, StoredFile, ResourceVersion, WebhookSource)
    models = (*models, Channel, Silence)
    tokens = ApiToken.objects.order_by("pk").values("name", "revoked_at", "scopes")
    return [list(tokens), *(list(model.objects.order_by("pk").values()) for model in models)]


def noted() -> list[tuple[str, str, str, str, str]]:
    entries = AuditEntry.objects.order_by("pk")
    return [(f"{entry.kind} {entry.act}", entry.actor, entry.user_key, entry.door, entry.token) for entry in entries]


@contextmanager
def undone() -> Iterator[None]:
    """Undo what the block writes."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def check_cells(door: Any, role: str, rows: dict[str, Rows], actor: tuple[str, str, str, str]) -> None:
    """Try every act that the door has, as the role, on the rows of both jobs."""
    wrong, before = [], stored()
    for name, may in MAY.items():
        for job, own in rows.items() if name in door.ACTS else ():
            column = "dead" if role in DEAD else role
            with undone():
                is_done = door.ACTS[name](door, own)
                expected = [(each, *actor) for each in door.NOTED.get(name, [name])]
                if job in ALLOWS[may[column]]:
                    if not is_done or noted() != expected:
                        wrong.append(f"{name} of {job} should be done: {is_done}, {noted()}")
                elif is_done or noted() or stored() != before:
                    wrong.append(f"{name} of {job} should be refused: {is_done}, {noted()}")
    assert not wrong, "\n".join(wrong)


# --- doors ----------------------------------------------------------------------------------------------------------


class Api:
    """Requests with a session or a token. A refusal is 401, 403 or, for what a token may not see, 404."""

    NOTED = {"file process": ["run start"]}
    REFUSALS = (401, 403, 404)

    def __init__(self, client: Client, secret: str = "") -> None:
        self.client, self.headers = client, {"Authorization": f"Bearer {secret}"} if secret else {}

    def send(self, method: str, address: str, body: Any = None) -> bool:
        content = "" if body is None else json.dumps(body)
        return self._is_done(
            self.client.generic(method, f"/api{address}", content, "application/json", headers=self.headers)
        )

    def upload(self, job: str) -> bool:
        fields = {"file": SimpleUploadedFile("a.txt", b"text"), "job": job}
        return self._is_done(self.client.post("/api/uploads", fields, headers=self.headers))

    def _is_done(self, answer: Any) -> bool:
        assert answer.status_code in {200, 201, 202, 204, *self.REFUSALS}, (answer.status_code, answer.content)
        return bool(answer.status_code < 400)

    def on(self, rows: Rows, place: str = "", body: Any = None, method: str = "POST") -> bool:
        return self.send(method, f"/schedules/{rows.schedule.pk}{place}", body)

    def on_source(self, rows: Rows, method: str, body: Any = None) -> bool:
        return self.send(method, f"/webhook-sources/{rows.source.pk}", body)

    @staticmethod
    def new(rows: Rows) -> dict[str, Any]:
        return {"name": "new", "job": rows.job, "arguments": rows.arguments, "timing": {"every": "1 hour"}}

    @staticmethod
    def silence(rows: Rows) -> dict[str, Any]:
        return {"schedule": rows.schedule.pk, "ends_at": (database_now() + HOUR).isoformat()}

    @staticmethod
    def range() -> dict[str, str]:
        end = database_now().replace(minute=0, second=0, microsecond=0)
        return {"start": (end - 3 * HOUR).isoformat(), "end": end.isoformat()}

    ACTS: dict[str, Callable[[Any, Rows], bool]] = {
        "schedule add": lambda door, rows: door.send("POST", "/schedules", door.new(rows)),
        "schedule change": lambda door, rows: door.on(rows, "", {"description": "x"}, "PATCH"),
        "schedule delete": lambda door, rows: door.on(rows, method="DELETE"),
        **{
            f"schedule {name}": lambda door, rows, name=name: door.on(rows, f"/{name}")
            for name in ("enable", "disable", "pause", "resume", "run")
        },
        "schedule skip": lambda door, rows: door.on(rows, "/skip", {"moments": 2}),
        "schedule backfill": lambda door, rows: door.on(rows, "/backfill", door.range()),
        "run start": lambda door, rows: door.send("POST", "/runs", {"job": rows.job, "arguments": rows.arguments}),
        "run retry": lambda door, rows: door.send("POST", f"/runs/{rows.failed.pk}/retry"),
        "run cancel": lambda door, rows: door.send("POST", f"/runs/{rows.waiting.pk}/cancel"),
        "file process": lambda door, rows: door.upload(rows.job),
        "file delete": lambda door, rows: door.send("DELETE", f"/files/{rows.file.pk}"),
        "resource invalidate": lambda door, _: door.send("POST", "/resources/prices/invalidate"),
        "token revoke": lambda door, _: door.send("POST", f"/tokens/{other().pk}/revoke"),
        "webhook source add": lambda door, rows: door.send("POST", "/webhook-sources", rows.new_source),
        "webhook source change": lambda door, rows: door.on_source(rows, "PATCH", {"is_enabled": False}),
        "webhook source delete": lambda door, rows: door.on_source(rows, "DELETE"),
        "channel add": lambda door, _: door.send("POST", "/channels", {"name": "new", "addresses": ["a@example.org"]}),
        "channel change": lambda door, rows: door.send("PATCH", f"/channels/{rows.channel.pk}", {"is_enabled": False}),
        "channel delete": lambda door, rows: door.send("DELETE", f"/channels/{rows.channel.pk}"),
        "channel test": lambda door, rows: door.send("POST", f"/channels/{rows.channel.pk}/test"),
        "silence add": lambda door, rows: door.send("POST", "/silences", door.silence(rows)),
        "silence change": lambda door, rows: door.send("POST", f"/silences/{rows.silence.pk}/end"),
        "silence delete": lambda door, rows: door.send("DELETE", f"/silences/{rows.silence.pk}"),
    }


class Admin:
    """Pages and actions of the admin."""

    # A timing of its own is a new crontab, too. A run of the job processes a file. A usable token is revoked first.
    NOTED = {
        "schedule retime": ["timing add", "schedule retime"],
        "file process": ["run start"],
        "token delete": ["token revoke", "token delete"],
    }

    def __init__(self, client: Client) -> None:
        self.client = client

    def act(self, name: str, rows: Rows, **fields: Any) -> bool:
        """Whether the action noted anything: the page only shows a message."""
        chosen = {"action": name, "_selected_action": [rows.schedule.pk]}
        return self.post(SCHEDULES, chosen | fields | ({"step": "1"} if fields else {}))

    def post(self, address: str, fields: dict[str, Any]) -> bool:
        answer = self.client.post(address, fields)
        assert answer.status_code in {200, 302, 403}
        return AuditEntry.objects.exists()

    def change(self, rows: Rows) -> bool:
        address = reverse("admin:django_celery_beat_periodictask_change", args=[rows.schedule.pk])
        fields = {"name": rows.job, "task": rows.job, "kwargs": rows.schedule.kwargs, "description": "x"}
        return self.post(address, form(rows.schedule, crontab=rows.schedule.crontab_id, **fields))

    def backfill(self, rows: Rows) -> bool:
        previewed = act(self.client, "backfill", rows.schedule, **backfill_fields(preview="Preview"))
        hidden = hidden_of(previewed) if previewed.status_code == 200 else {}
        return self.act("backfill", rows, **backfill_fields(do="Create", **hidden))

    def new(self, rows: Rows) -> bool:
        every = IntervalSchedule.objects.get().pk
        return self.post(NEW, form(task=rows.job, kwargs=json.dumps(rows.arguments), interval=every))

    def retime(self, rows: Rows) -> bool:
        address = f"{reverse('admin:django_celery_beat_crontabschedule_add')}?schedule={rows.schedule.pk}"
        fields = {"minute": "5", "hour": "5", "timezone": "UTC"}
        return self.post(address, fields | dict.fromkeys(("day_of_month", "month_of_year", "day_of_week"), "*"))

    def upload(self, _: Rows) -> bool:
        return self.post(reverse("admin:jobs_storedfile_add"), {"file": SimpleUploadedFile("a.txt", b"text")})

    def process(self, rows: Rows) -> bool:
        action = "process" if rows.job == FREE else "make_thumbnails"
        return self.post(FILES, {"action": action, "_selected_action": [rows.upload.pk]})

    def make_token(self, _: Rows) -> bool:
        fields = {"name": "new", "scopes": ["jobs.view_run"], "jobs": "", "schedules": "", "rate": 60}
        return self.post(reverse("admin:jobs_apitoken_add"), fields)

    def revoke(self, _: Rows) -> bool:
        address = reverse("admin:jobs_apitoken_changelist")
        return self.post(address, {"action": "revoke", "_selected_action": [other().pk]})

    def save_source(self, place: str, columns: dict[str, Any], *args: Any) -> bool:
        arguments = json.dumps(columns["arguments"])
        return self.post(reverse(f"admin:jobs_webhooksource_{place}", args=args), {**columns, "arguments": arguments})

    def save_channel(self, place: str, *args: Any, **fields: str) -> bool:
        usual = {"name": "new", "kind": "mail", "addresses": "ada@example.org", "of_system": "on"}
        return self.post(reverse(f"admin:jobs_channel_{place}", args=args), usual | fields)

    def invalidate(self, _: Rows) -> bool:
        address = reverse("admin:jobs_resourceversion_changelist")
        return self.post(address, {"action": "invalidate", "_selected_action": ["prices"]})

    def of_run(self, name: str, run: Run) -> bool:
        return self.post(RUNS, {"action": name, "_selected_action": [run.pk]})

    def delete(self, kind: str, row: Any) -> bool:
        return self.post(reverse(f"admin:{kind}_delete", args=[row.pk]), {"post": "yes"})

    ACTS: dict[str, Callable[[Any, Rows], bool]] = {
        "schedule add": new,
        "schedule change": change,
        "schedule delete": lambda door, rows: door.delete("django_celery_beat_periodictask", rows.schedule),
        "schedule enable": lambda door, rows: door.act("enable", rows),
        "schedule disable": lambda door, rows: door.act("disable", rows),
        "schedule pause": lambda door, rows: door.act("pause", rows, catch_up="none", do="Pause"),
        "schedule resume": lambda door, rows: door.act("resume", rows),
        "schedule skip": lambda door, rows: door.act("skip_next", rows, moments=2, do="Skip"),
        "schedule retime": retime,
        "schedule run": lambda door, rows: door.act("run_now", rows),
        "schedule backfill": backfill,
        "run retry": lambda door, rows: door.of_run("retry", rows.failed),
        "run cancel": lambda door, rows: door.of_run("cancel", rows.waiting),
        "file upload": upload,
        "file process": process,
        "file delete": lambda door, rows: door.delete("jobs_storedfile", rows.file),
        "resource invalidate": invalidate,
        "token add": make_token,
        "token revoke": revoke,
        "token delete": lambda door, _: door.delete("jobs_apitoken", other()),
        "webhook source add": lambda door, rows: door.save_source("add", rows.new_source),
        "webhook source change": lambda door, rows: door.save_source("change", rows.new_source, rows.source.pk),
        "webhook source delete": lambda door, rows: door.delete("jobs_webhooksource", rows.source),
        "channel add": lambda door, _: door.save_channel("add", is_enabled="on"),
        "channel change": lambda door, rows: door.save_channel("change", rows.channel.pk),
        "channel delete": lambda door, rows: door.delete("jobs_channel", rows.channel),
        "channel test": lambda door, rows: door.post(channel_page(rows), {"test": "Send a test message"}),
        "silence add": lambda door, rows: door.post(
            reverse("admin:jobs_silence_add"), {"schedule": rows.schedule.pk, "lasts": "1 hour"}
        ),
        "silence change": lambda door, rows: door.post(
            reverse("admin:jobs_silence_changelist"), {"action": "end", "_selected_action": [rows.silence.pk]}
        ),
        "silence delete": lambda door, rows: door.delete("jobs_silence", rows.silence),
    }


class Code:
    """The functions themselves, as any door calls them."""

    NOTED = {"file process": ["run start"], "token delete": ["token revoke", "token delete"]}

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def try_(self, function: Callable[..., Any], *args: Any, **options: Any) -> bool:
        try:
            answer = function(*args, **options)
        except Forbidden:
            return False
        return not (isinstance(answer, requests.Requested) and answer.refused)

    def add(self, rows: Rows) -> bool:
        arguments, timing = json.dumps(rows.arguments), IntervalSchedule.objects.get()
        schedule = PeriodicTask(name="new", task=rows.job, kwargs=arguments, interval=timing)
        return self.try_(acts.save, schedule, {}, self.actor)

    def change(self, rows: Rows) -> bool:
        schedule = rows.schedules.get()
        schedule.description = "x"
        return self.try_(acts.save, schedule, {}, self.actor, {"description"})

    def retime(self, rows: Rows) -> bool:
        return self.try_(acts.retime, rows.schedules, self.actor, IntervalSchedule.objects.get())

    def backfill(self, rows: Rows) -> bool:
        end = database_now().replace(minute=0, second=0, microsecond=0)
        asked = Backfill(schedule=rows.schedule, start=end - 3 * HOUR, end=end, at_once=1)
        return self.try_(backfills.backfill, asked, self.actor)

    def make_token(self, _: Rows) -> bool:
        user = self.actor.user or User.objects.get(username="root")
        return self.try_(ApiToken.objects.issue, "new", user, ["jobs.view_run"], self.actor)

    ACTS: dict[str, Callable[[Any, Rows], bool]] = {
        "schedule add": add,
        "schedule change": change,
        "schedule retime": retime,
        "schedule backfill": backfill,
        **{
            f"schedule {name}": lambda door, rows, function=function: door.try_(function, rows.schedules, door.actor)
            for name, function in (
                *(("delete", acts.delete), ("enable", acts.enable), ("disable", acts.disable)),
                *(("pause", acts.pause), ("resume", acts.resume), ("run", requests.run_now)),
            )
        },
        "schedule skip": lambda door, rows: door.try_(acts.skip_next, rows.schedules, door.actor, 2),
        "run start": lambda door, rows: door.try_(requests.start, rows.job, rows.arguments, door.actor),
        "run retry": lambda door, rows: door.try_(requests.retry, [rows.failed], door.actor),
        "run cancel": lambda door, rows: door.try_(requests.cancel, Run.objects.filter(pk=rows.waiting.pk), door.actor),
        "file upload": lambda door, _: door.try_(uploads.keep_upload, SimpleUploadedFile("a", b"a"), door.actor),
        "file process": lambda door, rows: door.try_(
            uploads.take_upload, SimpleUploadedFile("a", b"a"), door.actor, job=rows.job
        ),
        "file delete": lambda door, rows: door.try_(
            files.delete, StoredFile.objects.filter(pk=rows.file.pk), door.actor
        ),
        "resource invalidate": lambda door, _: door.try_(resources.invalidate, "prices", actor=door.actor),
        "token add": make_token,
        "token revoke": lambda door, _: door.try_(ApiToken.objects.filter(name="other").revoke, door.actor),
        "token delete": lambda door, _: door.try_(ApiToken.objects.filter(name="other").remove, door.actor),
        "webhook source add": lambda door, rows: door.try_(webhooks.save, WebhookSource(**rows.new_source), door.actor),
        "webhook source change": lambda door, rows: door.try_(
            webhooks.change, WebhookSource.objects.filter(pk=rows.source.pk), {"is_enabled": False}, door.actor
        ),
        "webhook source delete": lambda door, rows: door.try_(webhooks.delete, [rows.source], door.actor),
        "channel add": lambda door, _: door.try_(
            telling.save_channel, Channel(name="new", addresses=["ada@example.org"]), door.actor
        ),
        "channel change": lambda door, rows: door.try_(
            telling.change_channels, rows.channels, {"is_enabled": False}, door.actor
        ),
        "channel delete": lambda door, rows: door.try_(telling.delete_channels, rows.channels, door.actor),
        "channel test": lambda door, rows: door.try_(telling.test_channel, rows.channel, door.actor),
        "silence add": lambda door, rows: door.try_(telling.save_silence, rows.new_silence, door.actor),
        "silence change": lambda door, rows: door.try_(telling.end_silences, rows.silences, door.actor),
        "silence delete": lambda door, rows: door.try_(telling.delete_silences, rows.silences, door.actor),
    }


class Shell:
    """Commands of manage.py."""

    NOTED = {"file process": ["run start"], "token delete": ["token revoke", "token delete"]}

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def call(self, *words: Any) -> bool:
        return call(*map(str, words)).status == 0

    def form(self, content: Any) -> Path:
        """The JSON file of a form."""
        path = self.folder / "form.json"
        path.write_text(json.dumps(content))
        return path

    def backfill(self, rows: Rows) -> bool:
        moments = Api.range()
        return self.call(
            *("schedules", "backfill", rows.job, "--yes", "--from", moments["start"], "--until", moments["end"])
        )

    def process(self, rows: Rows) -> bool:
        (self.folder / "a.png").write_bytes(b"a")
        return self.call("runs", "start", rows.job, "--file", self.folder / "a.png")

    ACTS: dict[str, Callable[[Any, Rows], bool]] = {
        "schedule add": lambda door, rows: door.call("schedules", "add", door.form(Api.new(rows))),
        "schedule change": lambda door, rows: door.call(
            "schedules", "change", rows.job, door.form({"description": "x"})
        ),
        "schedule delete": lambda door, rows: door.call("schedules", "delete", rows.job, "--yes"),
        **{
            f"schedule {name}": lambda door, rows, name=name: door.call("schedules", name, rows.job)
            for name in ("enable", "disable", "pause", "resume", "run")
        },
        "schedule skip": lambda door, rows: door.call("schedules", "skip", rows.job, 2),
        "schedule backfill": backfill,
        "run start": lambda door, rows: door.call("runs", "start", rows.job, "--arguments", json.dumps(rows.arguments)),
        "run retry": lambda door, rows: door.call("runs", "retry", rows.failed.pk),
        "run cancel": lambda door, rows: door.call("runs", "cancel", rows.waiting.pk),
        "file process": process,
        "file delete": lambda door, rows: door.call("files", "delete", rows.file.pk, "--yes"),
        "token add": lambda door, _: door.call("token", "create", "new", "--user", "root", "--scope", "jobs.view_run"),
        "token revoke": lambda door, _: door.call("token", "revoke", "other"),
        "token delete": lambda door, _: door.call("token", "delete", "other"),
        "webhook source add": lambda door, rows: door.call("sources", "add", door.form(rows.new_source)),
        "webhook source change": lambda door, rows: door.call(
            "sources", "change", rows.source.name, door.form({"is_enabled": False})
        ),
        "webhook source delete": lambda door, rows: door.call("sources", "delete", rows.source.name, "--yes"),
        "channel test": lambda door, rows: door.call("alerts", "test", rows.channel.name),
        "silence add": lambda door, rows: door.call("alerts", "mute", rows.job, "--until", "1 hour"),
        "silence change": lambda door, rows: door.call("alerts", "unmute", rows.silence.pk),
    }


# --- roles ----------------------------------------------------------------------------------------------------------

USERS = ("viewer", "changer", "holder", "root")
TOKENS = ("whole", "viewing", "no_right", "of_job", "of_schedule", "lost", *sorted(DEAD))


def client_of(user: User | None) -> Client:
    client = Client()
    if user:
        client.force_login(user)
    return client


def token_of(role: str, user: User, rows: dict[str, Rows]) -> tuple[ApiToken, str]:
    """A token of the user, with its secret."""
    scopes = sorted(user.get_all_permissions())
    wanted = {
        "viewing": lambda scope: ".view_" in scope,
        "no_right": lambda scope: f".{rights.PREFIX}" not in scope,
    }.get(role, bool)
    limits: dict[str, Any] = {
        "of_job": {"jobs": [FREE, OF_SOURCE[FREE]]},
        "of_schedule": {"schedules": [rows[RESTRICTED].schedule.pk]},
    }.get(role, {})
    token, secret = ApiToken.objects.issue("program", user, filter(wanted, scopes), "test", rate=60_000, **limits)
    changes: dict[str, dict[str, Any]] = {
        "expired": {"expires_at": database_now() - HOUR},
        "revoked": {"revoked_at": database_now()},
    }
    ApiToken.objects.filter(pk=token.pk).update(**changes.get(role, {"rate": 60_000}))
    if role == "lost":
        user.user_permissions.clear()
    User.objects.filter(pk=user.pk).update(is_active=role != "disabled")
    AuditEntry.objects.all().delete()
    return token, secret


def test_it_tries_every_act():
    acts_of_doors = {door: set(door.ACTS) for door in (Api, Admin, Code, Shell)}
    assert {f"{kind} {act}" for kind, act in NEEDED} <= set(MAY)
    assert set.union(*acts_of_doors.values()) == set(MAY)
    of_the_admin = {"token add", "token delete"}
    assert acts_of_doors[Api] == set(MAY) - {"schedule retime", "file upload", *of_the_admin}
    assert acts_of_doors[Admin] == set(MAY) - {"run start"}
    assert acts_of_doors[Code] == set(MAY)
    elsewhere = {"schedule retime", "file upload", "resource invalidate", "silence delete"}
    assert acts_of_doors[Shell] == set(MAY) - elsewhere - {"channel add", "channel change", "channel delete"}
    assert set(HEAD) == {"anonymous", *USERS, *TOKENS, "dead"} - DEAD


@pytest.mark.parametrize("role", ["anonymous", *USERS])
def test_it_lets_users_of_the_admin_do_what_they_may(users, rows, role):
    user = users.get(role)
    check_cells(Admin(client_of(user)), role, rows, (role, str(user and user.pk), "admin", ""))


@pytest.mark.parametrize("role", ["anonymous", *USERS])
def test_it_lets_session_users_of_the_api_do_what_they_may(users, rows, role):
    user = users.get(role)
    check_cells(Api(client_of(user)), role, rows, (role, str(user and user.pk), "api", ""))


@pytest.mark.parametrize("role", TOKENS)
def test_it_lets_tokens_do_what_they_and_their_users_may(users, rows, role):
    holder = users["holder"]
    _, secret = token_of(role, holder, rows)
    beside = client_of(users["root"])  # the token counts, not the session
    check_cells(Api(beside, secret), role, rows, ("holder", str(holder.pk), "api", "program"))


@pytest.mark.parametrize("role", USERS)
def test_it_lets_code_do_for_users_what_they_may(users, rows, role):
    user = users[role]
    check_cells(Code(Actor.of_user(user, Door.SHELL)), role, rows, (role, str(user.pk), "shell", ""))


@pytest.mark.parametrize("role", [role for role in TOKENS if role not in DEAD])
def test_it_lets_code_do_for_tokens_what_they_may(users, rows, role):
    holder = users["holder"]
    token, _ = token_of(role, holder, rows)
    actor = Actor.of_user(User.objects.get(pk=holder.pk), Door.API, token)
    check_cells(Code(actor), role, rows, ("holder", str(holder.pk), "api", "program"))


def test_it_lets_code_without_a_user_do_everything(users, rows):
    check_cells(Code(Actor("night shift", door=Door.SHELL)), "root", rows, ("night shift", "", "shell", ""))


def test_it_lets_the_user_of_the_shell_do_everything(users, rows, tmp_path):
    check_cells(Shell(tmp_path), "root", rows, (Actor.of_shell().name, "", "shell", ""))
