"""Only users with the right for a restricted job may schedule, start or change it. Steps are not jobs.

The tests try every ready-made job, every act and every kind of user, through the admin and by calling the acts.
"""

from datetime import timedelta

import pytest
from celery import current_app
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs.beat import claim
from jobs.ledger import backfills, requests
from jobs.models import Backfill, Policy, Run, State, StoredFile, Trigger, database_now, rights
from jobs.models.audit import Actor
from jobs.rules.errors import Forbidden, Invalid
from jobs.schedules import acts
from jobs.schedules.check import check
from jobs.toolkit import uploads
from tests.database.test_admin import NEW, RUNS, SCHEDULES, act, form, page_of, text
from tests.making import make_due, make_run, make_schedule

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)
INTERVALS = reverse("admin:django_celery_beat_intervalschedule_changelist")
FILES = reverse("admin:jobs_storedfile_changelist")

RESTRICTED = {
    *("jobs.cleanup", "jobs.backup_database", "jobs.run_command", "celery.backend_cleanup"),
    *("jobs.send_email", "jobs.send_bulk_email", "jobs.report"),
}
FREE = {
    *("jobs.etl", "jobs.fan_out", "jobs.heartbeat", "jobs.http_call", "jobs.import_feed"),
    *("jobs.process_upload", "jobs.thumbnails", "tests.nothing"),
}
STEPS = {
    **dict.fromkeys(["jobs.etl.extract", "jobs.etl.clean", "jobs.etl.load"], "jobs.etl"),
    **dict.fromkeys(["jobs.fan_out.check", "jobs.fan_out.total"], "jobs.fan_out"),
    **dict.fromkeys(["jobs.thumbnails.resize", "jobs.thumbnails.collect"], "jobs.thumbnails"),
}
ID = "5e4f1a52-6f0e-4f7b-9f53-0d3a1f5f7a00"
MAIL = {"subject": "s", "text": "t"}
ARGUMENTS = {
    "jobs.run_command": {"command": "check"},
    "jobs.send_email": {"to": ["ada@example.org"], **MAIL},
    "jobs.send_bulk_email": {"recipients": ["ada@example.org"], **MAIL},
    "jobs.report": {"query": "test numbers"},
    "jobs.etl": {"source": "/data", "dataset": "d", "key": "k", "time": "t", "values": ["v"]},
    "jobs.http_call": {"url": "/"},
    "jobs.import_feed": {"url": "/feed"},
    "jobs.process_upload": {"file": ID},
    "jobs.thumbnails": {"file": ID},
}


def sentence(job: str, name: str = "eve", entry: str = "") -> str:
    return (
        f"Without the permission “Can schedule and start {entry or job}”, {name} may not change or start {job}. Ask an"
    )


def right(entry: str) -> Permission:
    return Permission.objects.get(name=f"Can schedule and start {entry}")


@pytest.fixture
def users(db) -> dict[str, User]:
    """A user who may view, one who may change everything but has no right, one with a right, and a superuser."""
    made = {name: User.objects.create_user(name, is_staff=True) for name in ("viewer", "eve", "holder")}
    ours = Permission.objects.filter(content_type__app_label__in=["jobs", "django_celery_beat"])
    changing = ours.exclude(codename__startswith="start:")
    made["viewer"].user_permissions.set(changing.filter(codename__startswith="view_"))
    made["eve"].user_permissions.set(changing)
    made["holder"].user_permissions.set([*changing, *ours.filter(name="Can schedule and start jobs.cleanup")])
    made["root"] = User.objects.create_superuser("root")
    return made


@pytest.fixture
def eve(client, users):
    """A client whose user may change all schedules and runs, but has no right for a restricted job."""
    client.force_login(users["eve"])
    return client


def permitted(name: str) -> set[str]:
    """The restricted and other jobs that this user may change and start."""
    return {"viewer": set(), "eve": FREE, "holder": FREE | {"jobs.cleanup"}, "root": FREE | RESTRICTED}[name]


def changed(**condition) -> set[str]:
    return set(PeriodicTask.objects.filter(**condition).values_list("task", flat=True))


def requested() -> set[str]:
    return set(Run.objects.filter(trigger=Trigger.MANUAL).values_list("task", flat=True))


# For each action: the fields of its form, and whose schedules it has changed. Each begins where the one before ended.
ACTIONS = {
    "run_now": ({}, requested),
    "disable": ({}, lambda: changed(enabled=False)),
    "enable": ({}, lambda: changed(enabled=True)),
    "pause": ({"catch_up": "none", "do": "Pause"}, lambda: changed(policy__paused_at__isnull=False)),
    "resume": ({}, lambda: changed(policy__paused_until__isnull=False)),
    "skip_next": ({"moments": 3, "do": "Skip"}, lambda: changed(policy__skip_next=3)),
    "delete_selected": ({"post": "yes"}, lambda: (FREE | RESTRICTED) - changed()),
}
BEFORE = {"enable": {"enabled": False}}  # columns of the schedules before an action


def test_it_knows_every_ready_made_job():
    names = {name for name in current_app.tasks if name.startswith("jobs.")}
    assert names == (FREE | RESTRICTED | STEPS.keys()) - {"tests.nothing", "celery.backend_cleanup"}


@pytest.mark.parametrize("name", ["viewer", "eve", "holder", "root"])
def test_it_applies_each_action_to_the_permitted_schedules_and_names_the_others(client, users, name):
    schedules = [make_schedule(job, job, kwargs=ARGUMENTS.get(job, {})) for job in sorted(FREE | RESTRICTED)]
    client.force_login(users[name])
    for action, (fields, done) in ACTIONS.items():
        PeriodicTask.objects.update(**BEFORE.get(action, {"enabled": True}))
        if action == "resume":
            Policy.objects.update(paused_at=database_now())
        page = text(act(client, action, *schedules, **fields))
        assert done() == permitted(name), action
        for job in RESTRICTED:
            assert (sentence(job, name) in page) == (name != "viewer" and job not in permitted(name)), (action, job)
        assert ("Left out: “jobs.report: every 3600 seconds”. Without the" in page) == (name in {"eve", "holder"})


@pytest.mark.parametrize("name", ["viewer", "eve", "holder", "root"])
def test_it_retries_and_cancels_the_permitted_runs_only(client, users, name):
    failed = [make_run(task=job, state=State.FAILED, kwargs=ARGUMENTS.get(job, {})) for job in FREE | RESTRICTED]
    waiting = [make_run(task=job) for job in FREE | RESTRICTED]
    client.force_login(users[name])
    for action, runs in (("retry", failed), ("cancel", waiting)):
        client.post(RUNS, {"action": action, "_selected_action": [run.pk for run in runs]}, follow=True)
    for found in (Run.objects.filter(trigger=Trigger.RETRY), Run.objects.filter(state=State.CANCELLED)):
        assert set(found.values_list("task", flat=True)) == permitted(name)


@pytest.mark.parametrize("job", sorted(RESTRICTED))
def test_it_shows_the_schedule_of_a_restricted_job_and_refuses_to_change_it(eve, job):
    schedule = make_schedule("theirs", job, kwargs=ARGUMENTS.get(job, {}))
    address = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    page = eve.get(address)
    assert sentence(job) in text(page)
    assert "_save" not in page.content.decode()
    assert "policy-0-skip_next" not in page.content.decode()
    data = form(schedule, name="mine", task="tests.nothing", interval=schedule.interval_id)
    removing = reverse("admin:django_celery_beat_periodictask_delete", args=[schedule.pk])
    for answer in (eve.post(address, data), eve.post(removing, {"post": "yes"}), eve.get(removing)):
        assert answer.status_code == 403
        assert sentence(job) in answer.content.decode()
    schedule.refresh_from_db()
    assert (schedule.name, schedule.task) == ("theirs", job)


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "jobs.cleanup"},
        {"task": "tests.nothing", "regtask": "jobs.cleanup"},
        {"task": "jobs.cleanup", "regtask": "jobs.cleanup", "arguments_of": "jobs.cleanup"},
        {"task": "jobs.cleanup", "arguments_of": "jobs.heartbeat"},
        {"task": "jobs.cleanup", "one_off": "on"},
        {"task": "jobs.cleanup", "enabled": ""},
        {"task": " jobs.cleanup "},
    ],
)
def test_it_refuses_to_schedule_a_restricted_job(eve, fields):
    schedule = make_schedule("mine")
    change = reverse("admin:django_celery_beat_periodictask_change", args=[schedule.pk])
    timing = {"interval": schedule.interval_id}
    for address, data in (
        (NEW, form(**fields, **timing)),
        (NEW, form(**fields, **timing, _saveasnew="1")),
        (change, form(schedule, **fields, **timing)),
        (change, form(schedule, **fields, **timing, _saveasnew="1")),
    ):
        assert sentence("jobs.cleanup") in text(eve.post(address, data))
    assert changed() == {"tests.nothing"}


def test_it_lets_a_user_with_the_right_schedule_the_job(client, users):
    client.force_login(users["holder"])
    every = IntervalSchedule.objects.create(every=1, period="hours")
    assert client.post(NEW, form(task="jobs.cleanup", interval=every.pk)).status_code == 302
    assert sentence("jobs.report", "holder") in text(client.post(NEW, form(task="jobs.report", interval=every.pk)))
    assert changed() == {"jobs.cleanup"}


def test_it_offers_only_jobs_that_the_user_may_schedule(client, users):
    for name in ("eve", "holder", "root"):
        client.force_login(users[name])
        page = client.get(NEW).content.decode()
        offered = {job for job in FREE | RESTRICTED | STEPS.keys() if f'<option value="{job}"' in page}
        assert offered == permitted(name) - {"celery.backend_cleanup"}


def test_it_takes_no_policy_of_another_schedule(eve):
    theirs, mine = make_schedule("theirs", "jobs.cleanup"), make_schedule("mine")
    data = form(mine, interval=mine.interval_id) | {"policy-0-schedule": theirs.pk, "policy-0-skip_next": 9}
    eve.post(reverse("admin:django_celery_beat_periodictask_change", args=[mine.pk]), data)
    edited = {
        "form-TOTAL_FORMS": 1,
        "form-INITIAL_FORMS": 1,
        "form-0-id": theirs.pk,
        "form-0-enabled": "",
        "_save": "1",
    }
    eve.post(SCHEDULES, edited)
    assert list(Policy.objects.filter(schedule=theirs).values_list("skip_next", "schedule__enabled")) == [(0, True)]


def test_it_refuses_to_change_a_timing_that_a_restricted_job_uses(eve):
    theirs = make_schedule("theirs", "jobs.cleanup")
    make_schedule("mine")
    other = IntervalSchedule.objects.create(every=5, period="days")
    address = reverse("admin:django_celery_beat_intervalschedule_change", args=[theirs.interval_id])
    removing = reverse("admin:django_celery_beat_intervalschedule_delete", args=[theirs.interval_id])
    assert sentence("jobs.cleanup") in text(eve.get(address))
    answers = [eve.post(address, {"every": 1, "period": "seconds"}), eve.post(removing, {"post": "yes"})]
    only = reverse("admin:django_celery_beat_intervalschedule_add") + f"?schedule={theirs.pk}"
    answers += [eve.get(only), eve.post(only, {"every": 1, "period": "seconds"})]
    for answer in answers:
        assert answer.status_code == 403
        assert sentence("jobs.cleanup") in answer.content.decode()
    chosen = {"action": "delete_selected", "_selected_action": [theirs.interval_id, other.pk], "post": "yes"}
    assert sentence("jobs.cleanup") in text(eve.post(INTERVALS, chosen, follow=True))
    assert list(IntervalSchedule.objects.values_list("pk", flat=True)) == [theirs.interval_id]
    theirs.refresh_from_db()
    assert (theirs.interval.every, theirs.interval.period) == (3600, "seconds")
    assert "change only this one" not in page_of(eve, theirs)


def test_it_backfills_no_restricted_job(eve):
    schedule = make_schedule("theirs", "jobs.cleanup")
    assert sentence("jobs.cleanup") in text(act(eve, "backfill", schedule))


def test_it_deletes_no_backup_without_the_right_for_backups(eve, users):
    kinds = (StoredFile.Kind.BACKUP, StoredFile.Kind.UPLOAD)
    backup, upload = (StoredFile.objects.create(kind=kind, name=kind, file=f"{kind}/x", size=0) for kind in kinds)
    for row in (backup, upload):
        eve.post(reverse("admin:jobs_storedfile_delete", args=[row.pk]), {"post": "yes"})
    eve.post(FILES, {"action": "delete_selected", "_selected_action": [backup.pk], "post": "yes"})
    assert list(StoredFile.objects.all()) == [backup]
    users["eve"].user_permissions.add(right("jobs.backup_database"))
    eve.post(reverse("admin:jobs_storedfile_delete", args=[backup.pk]), {"post": "yes"})
    assert not StoredFile.objects.exists()


def test_it_starts_no_restricted_job_for_a_file(eve, settings):
    settings.RESTRICTED_JOBS = ["jobs.thumbnails"]
    row = StoredFile.objects.create(name="a.png", file="a", size=1)
    for action in ("make_thumbnails", "process"):
        page = text(eve.post(FILES, {"action": action, "_selected_action": [row.pk]}, follow=True))
        assert (sentence("jobs.thumbnails") in page) == (action == "make_thumbnails")
    assert requested() == {"jobs.process_upload"}


def one_of(job: str, actor: Actor) -> dict[str, object]:
    """Every act on a schedule of the job, or on a run of it."""
    schedules, run = PeriodicTask.objects.filter(task=job), make_run(task=job, state=State.FAILED)
    waiting = Run.objects.filter(pk=make_run(task=job).pk)
    timing, _ = IntervalSchedule.objects.get_or_create(every=7, period="days")
    end = database_now()
    backfill = Backfill(schedule=schedules.get(), start=end - HOUR, end=end, at_once=1)
    upload = SimpleUploadedFile("a.txt", b"text")
    return {
        "enable": lambda: acts.enable(schedules, actor),
        "disable": lambda: acts.disable(schedules, actor),
        "pause": lambda: acts.pause(schedules, actor),
        "resume": lambda: acts.resume(schedules, actor),
        "skip_next": lambda: acts.skip_next(schedules, actor, 2),
        "retime": lambda: acts.retime(schedules, actor, timing),
        "cancel": lambda: requests.cancel(waiting, actor),
        "run_job": lambda: requests.start(job, ARGUMENTS.get(job, {}), actor),
        "take_upload": lambda: uploads.take_upload(upload, actor, job=job),
        "backfill": lambda: backfills.backfill(backfill, actor),
        "run_now": lambda: told(requests.run_now(schedules, actor)),
        "retry": lambda: told(requests.retry([run], actor)),
        "run_job_each": lambda: told(requests.start_each(job, [ARGUMENTS.get(job, {})], actor)),
        "check": lambda: check(schedules.get(), Policy(), end, timing_changed=False, actor=actor),
    }


def told(answer: requests.Requested) -> None:
    """Raise the refusal of a request for several runs."""
    for _, why in answer.refused:
        raise Forbidden(why) if why.startswith("Without the permission") else Invalid(why)


@pytest.mark.parametrize("job", sorted(RESTRICTED))
def test_it_refuses_every_act_on_a_restricted_job(users, job):
    make_schedule("theirs", job, kwargs=ARGUMENTS.get(job, {}), policy={"paused_at": database_now()})
    before = list(PeriodicTask.objects.values()), list(Policy.objects.values())
    for name, do in one_of(job, Actor.of_user(users["eve"])).items():
        with pytest.raises(Forbidden, match=r"^Without the permission .* eve may not change or start"):
            do()
        assert (list(PeriodicTask.objects.values()), list(Policy.objects.values())) == before, name
    assert set(Run.objects.values_list("state", "trigger")) == {("failed", "schedule"), ("waiting", "schedule")}
    assert not StoredFile.objects.exists()


@pytest.mark.parametrize("name", ["code", "root", "holder"])
def test_it_lets_code_superusers_and_users_with_the_right_act(users, name):
    make_schedule("theirs", "jobs.cleanup")
    Policy.objects.update(timing_since=database_now() - 2 * HOUR)
    actor = Actor("ada") if name == "code" else Actor.of_user(users[name])
    for act_name, do in one_of("jobs.cleanup", actor).items():
        if act_name == "take_upload":  # the job takes no file
            with pytest.raises(Invalid, match="do not fit"):
                do()
        else:
            do()


class Bare:
    """A user of a model without permissions."""

    pk = 7

    def get_username(self) -> str:
        return "bare"


def test_it_refuses_a_user_without_permissions_and_one_who_is_inactive(users):
    users["root"].is_active = False
    for user in (Bare(), users["root"]):
        assert Actor.of_user(user).why_not("jobs.cleanup")
        assert not Actor.of_user(user).why_not("tests.nothing")


@pytest.mark.parametrize(
    ("entries", "job", "entry"),
    [
        (["billing.*"], "billing.remind", "billing.*"),
        (["billing.*"], "billing", None),
        (["billing.*"], "billings.remind", None),
        (["*"], "anything", "*"),
        (["*", "billing.*", "billing.re*"], "billing.remind", "billing.re*"),
        (["billing.re*", "*", "billing.*"], "billing.charge", "billing.*"),
        (["*", "billing.*", "billing.remind"], "billing.remind", "billing.remind"),
        (["billing.remind*", "billing.remind"], "billing.remind", "billing.remind"),
        (["Billing.*"], "billing.remind", None),
        ([], "billing.remind", None),
    ],
)
def test_it_lets_the_most_specific_entry_decide(settings, users, entries, job, entry):
    settings.RESTRICTED_JOBS = entries
    call_command("migrate", verbosity=0)
    if entry is None:
        assert not Actor.of_user(users["eve"]).why_not(job)
        return
    assert sentence(job, entry=entry) in Actor.of_user(users["eve"]).why_not(job)
    users["holder"].user_permissions.set([right(other) for other in entries if other != entry])
    assert Actor.of_user(User.objects.get(username="holder")).why_not(job)
    users["eve"].user_permissions.add(right(entry))
    assert not Actor.of_user(User.objects.get(username="eve")).why_not(job)


def test_it_makes_a_permission_for_each_entry_and_deletes_those_of_former_ones(settings, users):
    long = f"billing.{'x' * 180}"
    settings.RESTRICTED_JOBS = [long, f"{long}*", "jobs.cleanup"]
    for _ in range(2):
        call_command("migrate", verbosity=0)
        ours = Permission.objects.filter(codename__startswith="start:")
        assert {each.name for each in ours} == {f"Can schedule and start {entry}" for entry in settings.RESTRICTED_JOBS}
        assert {f"{each.content_type.app_label}.{each.codename}" for each in ours} == {
            f"jobs.{rights.codename_of(entry)}" for entry in settings.RESTRICTED_JOBS
        }
    assert users["holder"].user_permissions.filter(pk=right("jobs.cleanup").pk).exists()
    users["eve"].user_permissions.add(right(long))
    assert not Actor.of_user(User.objects.get(username="eve")).why_not(long)


def test_it_keeps_running_schedules_whose_author_has_no_right(users):
    make_due(make_schedule("theirs", "jobs.cleanup"))
    [[run]] = claim.claim_due()
    assert (run.task, run.state) == ("jobs.cleanup", State.WAITING)


def test_it_sends_no_further_queries_for_further_schedules(eve, django_assert_max_num_queries):
    schedules = [make_schedule(f"s{n}", job) for n, job in enumerate(["jobs.cleanup", "tests.nothing"] * 15)]
    eve.get(SCHEDULES)  # writes the session
    with django_assert_max_num_queries(9):
        assert "s0" in text(eve.get(SCHEDULES))
    asked = []
    for chosen in (schedules[:22], schedules):
        with CaptureQueriesContext(connection) as queries:
            data = {"action": "skip_next", "_selected_action": [each.pk for each in chosen], "step": "1", "moments": 1}
            eve.post(SCHEDULES, data)
        asked.append(len(queries))
    assert asked[1] <= asked[0] < 40
    assert changed(policy__skip_next=1) == {"tests.nothing"}
    with django_assert_max_num_queries(25):
        eve.get(reverse("admin:django_celery_beat_intervalschedule_change", args=[schedules[0].interval_id]))


# --- Steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_it_refuses_a_step_as_a_job(admin_client, step):
    why = f"{step!r} is a step of {STEPS[step]!r}: schedule {STEPS[step]!r} instead."
    schedule = make_schedule("old", step)
    assert why in text(admin_client.post(NEW, form(task=step, interval=schedule.interval_id)))
    assert why in text(act(admin_client, "run_now", schedule))
    with pytest.raises(Invalid, match="is a step of"):
        requests.start(step, {}, "code")
    assert why in requests.retry([make_run(task=step, state=State.FAILED)], "code").refused[0][1]
    make_due(schedule)
    list(claim.claim_due())
    skipped = Run.objects.get(schedule=schedule)
    assert (skipped.state, skipped.reason) == (State.SKIPPED, f"invalid: {why}")
    assert f"cannot run {why}" in text(admin_client.get(SCHEDULES))


def test_it_retries_the_parent_of_a_step():
    run = make_run(task="jobs.etl", state=State.FAILED, kwargs=ARGUMENTS["jobs.etl"])
    assert not requests.retry([run], "code").refused
