"""What do people see of health and alerts, and which channels and silences may they make? In each door."""

from datetime import timedelta

import pytest
from django.urls import reverse

from jobs.alerts import acts
from jobs.models import Alert, AuditEntry, Channel, Condition, Notice, Policy, Silence, database_now
from jobs.rules.errors import Invalid
from tests.api import make_caller
from tests.database.test_admin import SCHEDULES, act, page_of, text, viewer
from tests.database.test_channels import post
from tests.database.test_commands import call
from tests.making import make_schedule

pytestmark = pytest.mark.django_db
__all__ = ["post", "viewer"]
HOUR = timedelta(hours=1)


@pytest.fixture
def alert() -> Alert:
    schedule, now = make_schedule("Invoices"), database_now()
    make_schedule("other")
    columns = {"health": "failing", "sentence": "ValueError: no", "since": now}
    Condition.objects.create(subject=f"schedule:{schedule.pk}", schedule=schedule, **columns)
    return Alert.objects.create(schedule=schedule, name="Invoices", job="tests.nothing", before="ok", at=now, **columns)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"addresses": []}, "at least one mail address"),
        ({"addresses": ["ada"]}, "not a mail address"),
        ({"kind": "webhook"}, "Only a mail channel has addresses"),
        ({"kind": "webhook", "addresses": [], "url": "https://example.org/"}, "belongs in no form"),
        ({"kind": "pigeon"}, "There is no kind of channel"),
        ({"patterns": [" "]}, "in one line"),
        ({"patterns": ["x"] * 101}, "more than 100"),
        ({"healths": ["ok"]}, "There is no health 'ok'"),
        ({"zone": "Mars/Olympus"}, "There is no time zone"),
        ({"quiet_from": "22:00"}, "or leave both empty"),
        ({"name": "a\nb"}, "in one line"),
    ],
)
def test_it_refuses_a_channel_that_could_tell_nothing(columns, sentence):
    channel = Channel(**{"name": "a", "addresses": ["ada@example.org"], **columns})
    with pytest.raises(Invalid, match=sentence):
        acts.save_channel(channel, "ada")
    assert not Channel.objects.exists()
    assert not AuditEntry.objects.exists()


def test_it_notes_no_change_of_a_channel_that_changes_nothing():
    acts.save_channel(Channel(name="a", addresses=["ada@example.org"]), "ada")
    assert acts.change_channels(Channel.objects.all(), {"is_enabled": True}, "ada") == 1
    assert AuditEntry.objects.count() == 1
    acts.change_channels(Channel.objects.all(), {"is_enabled": False}, "ada")
    entry = AuditEntry.objects.latest("id")
    assert (entry.before, entry.after) == ({"is_enabled": True}, {"is_enabled": False})
    with pytest.raises(Invalid, match="already exists"):
        acts.save_channel(Channel(name="a", addresses=["ada@example.org"]), "ada")


def test_it_reports_why_a_test_message_was_not_sent():
    channel = Channel.objects.create(name="a", kind="webhook", url="NOWHERE")
    with pytest.raises(Invalid, match="CHANNEL_URL_NOWHERE is not set"):
        acts.test_channel(channel, "ada")
    assert "CHANNEL_URL_NOWHERE" in AuditEntry.objects.get(act="test").summary


def test_it_sends_a_test_mail_from_the_admin(admin_client, post):
    channel = Channel.objects.create(name="a", kind="mail", addresses=["ada@example.org"])
    page = reverse("admin:jobs_channel_change", args=[channel.pk])
    assert "A test message was sent to “a”." in text(admin_client.post(page, {"test": "1"}, follow=True))
    assert post.given == ["ada@example.org"]
    assert "Sent a test message." in text(
        admin_client.get(reverse("admin:jobs_channel_history", args=[channel.pk]), follow=True)
    )


def test_the_form_of_a_channel_keeps_what_is_not_changed(admin_client):
    """A browser sends back what the page shows."""
    lists = {"addresses": ["ada@example.org", "tom@example.org"], "patterns": ["Nightly*", "billing.*"]}
    channel = Channel.objects.create(name="a", healths=["late"], quiet_from="22:00", quiet_until="07:00", **lists)
    page = reverse("admin:jobs_channel_change", args=[channel.pk])
    form = admin_client.get(page).context["adminform"].form
    shown = {name: form[name].field.prepare_value(form[name].initial) for name in form.fields}
    assert shown["patterns"] == "Nightly*\nbilling.*"
    sent = {name: "" if value is None else value for name, value in shown.items() if value is not False}
    assert admin_client.post(page, sent).status_code == 302
    channel.refresh_from_db()
    assert {name: getattr(channel, name) for name in lists} == lists
    assert not AuditEntry.objects.exists()


def test_it_refuses_addresses_outside_of_mail_domains(settings):
    settings.MAIL_DOMAINS = ["example.com"]
    with pytest.raises(Invalid, match=r"MAIL_DOMAINS allows example\.com"):
        acts.save_channel(Channel(name="a", kind="mail", addresses=["ada@example.org"]), "ada")
    assert not Channel.objects.exists()


@pytest.mark.parametrize(
    ("start", "end", "sentence"), [(0, -1, "choose a later end"), (2, 1, "choose a later end"), (0, 9000, "366 days")]
)
def test_it_refuses_a_silence_of_no_good_length(start, end, sentence):
    now = database_now()
    silence = Silence(starts_at=now + start * HOUR, ends_at=now + end * HOUR)
    with pytest.raises(Invalid, match=sentence):
        acts.save_silence(silence, "ada")


def test_it_ends_current_silences_deletes_upcoming_ones_and_leaves_those_that_are_over():
    now = database_now()
    current, upcoming, over = (
        Silence.objects.create(starts_at=now + start * HOUR, ends_at=now + (start + 2) * HOUR, created_by="ada")
        for start in (-1, 1, -5)
    )
    assert acts.end_silences(Silence.objects.all(), "ada") == 2
    assert set(Silence.objects.values_list("pk", flat=True)) == {current.pk, over.pk}
    current.refresh_from_db()
    assert current.ends_at < now + HOUR
    assert {(each.act, each.key) for each in AuditEntry.objects.all()} == {
        ("change", str(current.pk)),
        ("delete", str(upcoming.pk)),
    }


def test_it_shows_and_filters_health_and_mutes_in_the_admin(admin_client, alert):
    channel = Channel.objects.create(name="team", addresses=["ada@example.org"])
    Notice.objects.create(channel=channel, alert=alert, state="failed", error="refused", not_before=database_now())
    page = page_of(admin_client, alert.schedule)
    assert "failing since" in page
    assert "ValueError: no Mute …" in page
    assert "other" not in text(admin_client.get(f"{SCHEDULES}?health=failing")).split("Run now")[-1].split("Filter")[0]
    assert "team" in text(admin_client.get(reverse("admin:jobs_alert_changelist")))
    assert "refused" in text(admin_client.get(reverse("admin:jobs_alert_change", args=[alert.pk])))
    assert "refused" in text(admin_client.get(reverse("admin:jobs_channel_change", args=[channel.pk])))
    act(admin_client, "mute", alert.schedule, lasts="8 hours", reason="new server")
    assert timedelta(hours=7) < Silence.objects.get().ends_at - database_now() <= timedelta(hours=8)
    assert "muted until" in page_of(admin_client, alert.schedule)
    assert "new server" in text(admin_client.get(reverse("admin:jobs_silence_changelist")))


def test_it_shows_no_health_to_users_who_may_not_view_alerts(viewer, alert):
    assert "ValueError: no" not in page_of(viewer, alert.schedule)
    assert "other" in text(viewer.get(f"{SCHEDULES}?health=failing"))  # the filter is not there
    assert viewer.get(reverse("admin:jobs_alert_changelist")).status_code == 403


@pytest.mark.django_db(transaction=True)
def test_it_shows_health_and_alerts_in_the_api(alert):
    sees = make_caller("eve", "django_celery_beat.view_periodictask", "jobs.view_alert")
    (shown,) = sees.get("/api/schedules?health=failing")["items"]
    assert (shown["name"], shown["health"]["sentence"]) == ("Invoices", "ValueError: no")
    assert (shown["policy"]["late_after"], shown["policy"]["longest_runtime"]) == (300, None)
    assert [row["name"] for row in sees.get("/api/schedules?health=ok")["items"]] == ["other"]
    assert [row["id"] for row in sees.get("/api/alerts?health=failing")["items"]] == [alert.pk]
    assert sees.get("/api/alerts?health=late")["items"] == []
    blind = make_caller("bob", "django_celery_beat.view_periodictask")
    assert blind.get(f"/api/schedules/{alert.schedule.pk}")["health"] is None
    blind.get("/api/schedules?health=failing", 403)
    blind.get("/api/alerts", 403)


def test_it_mutes_and_unmutes_in_a_shell(alert):
    assert call("alerts", "list", "--health", "failing", "--json").json[0]["name"] == "Invoices"
    assert call("alerts", "mute", "--until", "1 hour").status == 2
    (made,) = call("alerts", "mute", "Invoices", "--until", "1 hour", "--json").json
    assert made["schedule"] == alert.schedule.pk
    assert call("alerts", "unmute", str(made["id"])).out == "Ended 1 silence.\n"
    assert call("alerts", "unmute", "999999").status == 3
    assert call("alerts", "test", "nowhere").status == 3
    assert Policy.objects.count() == 2
