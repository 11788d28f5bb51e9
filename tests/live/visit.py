"""A process that uses the admin as the user `ada` and then waits for a result: `python -m tests.live.visit`."""

# ruff: noqa: E402 - Django must be ready before models are imported

import django

django.setup()

from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs.models import Run, State
from project.celery import app
from tests.database.test_admin import NEW, RUNS, SCHEDULES, act, form, page_of, text
from tests.waiting import DEADLINE, eventually

client = Client()
client.force_login(User.objects.get(username="ada"))
hourly, _ = IntervalSchedule.objects.get_or_create(every=1, period="hours")
fields = form(name="nightly", task="tests.answer", interval=hourly.pk, **{"policy-0-keep_result": "true"})
assert "was added successfully" in text(client.post(NEW, fields, follow=True))
assert "no run yet" in text(client.get(SCHEDULES))
schedule = PeriodicTask.objects.get(name="nightly")
assert "Status: ok" in page_of(client, schedule)
assert "“nightly” is queued." in text(act(client, "run_now", schedule))
run = schedule.runs.get()
assert app.AsyncResult(str(run.id)).get(timeout=DEADLINE) == 42
eventually(lambda: Run.objects.get(id=run.id).state == State.SUCCEEDED)
assert "1 run" in text(client.get(RUNS))
assert "succeeded" in text(client.get(reverse("admin:jobs_run_change", args=[run.id])))
