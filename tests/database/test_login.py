"""Real requests show that logins are throttled, sessions end, and pages run only the site's own scripts."""

import io
import re
from datetime import timedelta
from html.parser import HTMLParser
from importlib import reload

import pytest
from axes.models import AccessAttempt, AccessLog
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import clear_url_caches, reverse
from django_celery_results.models import TaskResult

import project.urls
from jobs.tasks.cleanup import cleanup
from jobs.toolkit import files
from project.login import address_of
from project.sessions import BEGUN, SEEN
from tests.making import make_run, make_schedule

pytestmark = pytest.mark.django_db

LOGIN, INDEX = reverse("admin:login"), reverse("admin:index")
RIGHT, WRONG = "correct-horse-7", "wrong"


@pytest.fixture
def ada() -> User:
    return User.objects.create_superuser("ada", password=RIGHT)


def log_in(name: str = "ada", password: str = WRONG, client: Client | None = None, **request: str):
    return (client or Client()).post(LOGIN, {"username": name, "password": password}, **request)


def fail(times: int, name: str = "ada", **request: str) -> None:
    for _ in range(times):
        log_in(name, **request)


def works(response) -> bool:
    return response.status_code == 302


# --- throttled ------------------------------------------------------------------------------------------------------


def test_it_locks_a_name_after_five_wrong_passwords_until_the_time_is_over(ada):
    assert [log_in().status_code for _ in range(4)] == [200] * 4
    assert works(log_in(password=RIGHT))  # and forgets the failures
    assert [log_in().status_code for _ in range(5)] == [200] * 4 + [429]
    locked = log_in(password=RIGHT)
    assert (locked.status_code, locked["Retry-After"]) == (429, "900")
    assert "Try again in 15 minutes, or ask an operator" in re.sub(r"\s+", " ", locked.content.decode())
    assert AccessAttempt.objects.get().failures_since_start == 5  # tries during the lock do not lengthen it
    AccessAttempt.objects.update(attempt_time=AccessAttempt.objects.get().attempt_time - timedelta(minutes=15))
    assert works(log_in(password=RIGHT))
    assert not AccessAttempt.objects.exists()


def test_it_locks_neither_another_name_nor_another_address(ada):
    User.objects.create_superuser("bob", password=RIGHT)
    fail(6)
    assert works(log_in("bob", RIGHT))
    assert works(log_in(password=RIGHT, REMOTE_ADDR="203.0.113.9"))
    call_command("axes_reset_username", "ada", verbosity=0)
    assert works(log_in(password=RIGHT))


def test_it_locks_an_address_that_tries_many_names_even_if_one_login_succeeds(ada):
    for number in range(29):
        log_in(f"user{number}", HTTP_USER_AGENT=f"browser {number}")
    assert works(log_in(password=RIGHT))
    assert log_in("user30").status_code == 429
    assert log_in(password=RIGHT).status_code == 429
    assert works(log_in(password=RIGHT, REMOTE_ADDR="203.0.113.9"))


def test_it_answers_the_same_for_unknown_names(ada):
    def pages(name: str) -> list[str]:
        answers = [log_in(name) for _ in range(6)]
        return [(each.status_code, re.sub(rf'value="[^"]*"|{name}', "", each.content.decode())) for each in answers]

    assert pages("ada") == pages("eve")


def test_it_lists_many_failures_at_the_cost_of_one(ada):
    def queries() -> int:
        with CaptureQueriesContext(connection) as made:
            assert client.get(reverse("admin:axes_accessattempt_changelist")).status_code == 200
        return len(made)

    client = Client()
    client.force_login(ada)
    client.get(INDEX)
    fail(1)
    one = queries()
    for number in range(9):
        log_in(f"user{number}")
    assert queries() == one
    row = AccessAttempt.objects.first()
    page = client.get(reverse("admin:axes_accessattempt_change", args=[row.pk])).content.decode()
    assert WRONG not in page


@pytest.mark.parametrize(
    ("behind", "forwarded", "address"),
    [
        (False, "203.0.113.1", "192.0.2.7"),
        (True, "203.0.113.1", "203.0.113.1"),
        (True, "198.51.100.1, 10.0.0.1, 203.0.113.1", "203.0.113.1"),
        (True, "203.0.113.1, unknown", "192.0.2.7"),
        (True, "", "192.0.2.7"),
        (True, "::ffff:203.0.113.1", "203.0.113.1"),
        (True, "198.51.100.1:80, 203.0.113.1:50123", "203.0.113.1"),
        (True, "[2001:db8:1:2:3:4:5:6]:50123", "2001:db8:1:2::"),
        (True, "[2001:db8:1:2:3:4:5:6]", "2001:db8:1:2::"),
        (True, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
    ],
)
def test_it_takes_the_address_only_from_the_nearest_proxy(rf, settings, behind, forwarded, address):
    settings.BEHIND_PROXY = behind
    assert address_of(rf.get("/", REMOTE_ADDR="192.0.2.7", HTTP_X_FORWARDED_FOR=forwarded)) == address
    assert address_of(rf.get("/", REMOTE_ADDR="")) is None


def test_it_is_not_evaded_by_a_forged_address_or_another_browser(ada, settings):
    for behind in (False, True):
        settings.BEHIND_PROXY = behind
        for number in range(6):
            forged = f"198.51.100.{number}" + ", 203.0.113.1" * behind
            last = log_in(HTTP_X_FORWARDED_FOR=forged, HTTP_USER_AGENT=f"browser {number}")
        assert last.status_code == 429


def test_it_locks_a_user_who_guesses_the_old_password_of_a_session(client_of_ada):
    new = {"new_password1": "battery-staple-8", "new_password2": "battery-staple-8"}

    def change(old: str = WRONG, **wrong: str):
        return client_of_ada.post(reverse("admin:password_change"), {"old_password": old, **new, **wrong})

    for _ in range(5):
        assert change(RIGHT, new_password2="other").status_code == 200  # this guesses nothing
    assert [change().status_code for _ in range(5)] == [200] * 4 + [429]
    assert (change(RIGHT).status_code, log_in(password=RIGHT).status_code) == (429, 429)
    row = AccessAttempt.objects.get()
    assert (row.username, row.failures_since_start) == ("ada", 5)
    assert not any(word in row.post_data for word in (WRONG, RIGHT, "battery"))
    assert client_of_ada.get(INDEX).status_code == 200  # the session goes on
    call_command("axes_reset", verbosity=0)
    assert works(change(RIGHT))


def test_it_deletes_old_logins_with_the_clean_up(ada):
    assert works(log_in(password=RIGHT))
    old = AccessLog.objects.create(username="bob")
    AccessLog.objects.filter(pk=old.pk).update(attempt_time=old.attempt_time - timedelta(days=181))
    cleanup()
    assert AccessLog.objects.get().username == "ada"


# --- sessions -------------------------------------------------------------------------------------------------------


def aged(client: Client, **ago: timedelta) -> Client:
    """Move the beginning or the last use of the client's session into the past."""
    session = client.session
    for name, age in ago.items():
        session[name] -= int(age.total_seconds())
    session.save()
    return client


@pytest.fixture
def client_of_ada(ada) -> Client:
    client = Client()
    assert works(log_in(password=RIGHT, client=client))
    assert client.get(INDEX).status_code == 200
    return client


def test_it_ends_a_session_that_is_idle_or_old(client_of_ada, settings):
    assert aged(client_of_ada, **{SEEN: timedelta(minutes=700)}).get(INDEX).status_code == 200
    assert aged(client_of_ada, **{BEGUN: timedelta(days=6.9)}).get(INDEX).status_code == 200
    assert works(aged(client_of_ada, **{BEGUN: timedelta(days=0.2)}).get(INDEX))
    assert works(log_in(password=RIGHT, client=client_of_ada))
    assert client_of_ada.get(INDEX).status_code == 200
    assert works(aged(client_of_ada, **{SEEN: timedelta(hours=13)}).get(INDEX))
    assert "_auth_user_id" not in client_of_ada.session


def test_it_writes_a_used_session_at_most_once_in_five_minutes(client_of_ada):
    def writes() -> int:
        with CaptureQueriesContext(connection) as queries:
            client_of_ada.get(reverse("statistics"))
        return sum("UPDATE" in query["sql"] and "django_session" in query["sql"] for query in queries)

    assert writes() == 0
    aged(client_of_ada, **{SEEN: timedelta(minutes=6)})
    assert [writes(), writes()] == [1, 0]


def test_it_ends_other_sessions_when_the_password_changes(client_of_ada):
    here = Client()
    log_in(password=RIGHT, client=here)
    new = {"old_password": RIGHT, "new_password1": "battery-staple-8", "new_password2": "battery-staple-8"}
    assert works(here.post(reverse("admin:password_change"), new))
    assert here.get(INDEX).status_code == 200
    assert works(client_of_ada.get(INDEX))


def test_it_hides_its_cookies_from_scripts_and_other_sites(ada, settings):
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = True
    client = Client()
    client.get(LOGIN)
    log_in(password=RIGHT, client=client)
    for name in ("sessionid", "csrftoken"):
        cookie = client.cookies[name]
        assert (cookie["httponly"], cookie["secure"], cookie["samesite"]) == (True, True, "Lax")


# --- a login by the proxy -------------------------------------------------------------------------------------------


@pytest.fixture
def sso(settings) -> None:
    settings.BEHIND_PROXY, settings.SSO_HEADER = True, "X-Remote-User"
    settings.AUTHENTICATION_BACKENDS = [*settings.AUTHENTICATION_BACKENDS, "project.login.ProxyBackend"]
    middleware = list(settings.MIDDLEWARE)
    middleware.insert(middleware.index("project.sessions.limited"), "project.login.ProxyLogin")
    settings.MIDDLEWARE = middleware


def test_it_logs_in_the_user_whom_the_proxy_names(ada, sso):
    client = Client()
    assert client.get(INDEX, headers={"X-Remote-User": "ada"}).status_code == 200
    assert works(client.get(INDEX))  # the proxy names no user any more
    assert works(client.get(INDEX, headers={"X-Remote-User": "new"}))
    new = User.objects.get(username="new")
    assert (new.is_staff, new.is_superuser, new.has_usable_password(), new.get_all_permissions()) == (
        *[False] * 3,
        set(),
    )
    for odd in ("x" * 151, "a b", "\u2028"):
        assert works(client.get(INDEX, headers={"X-Remote-User": odd}))
    assert User.objects.count() == 2


def test_it_locks_no_address_for_names_that_may_not_log_in_by_the_proxy(ada, sso):
    User.objects.create_user("gone", is_active=False)
    for number in range(40):
        assert works(Client().get(INDEX, headers={"X-Remote-User": ("a b", "gone")[number % 2]}))
    assert not AccessAttempt.objects.exists()
    fail(5)
    assert Client().get(INDEX, headers={"X-Remote-User": "ada"}).status_code == 200  # the proxy checked the password
    for number in range(30):
        log_in(f"user{number}")
    assert log_in(password=RIGHT).status_code == 429
    assert Client().get(INDEX, headers={"X-Remote-User": "ada"}).status_code == 200


def test_it_ignores_the_header_unless_it_is_set(ada):
    assert works(Client().get(INDEX, headers={"X-Remote-User": "ada"}))


# --- headers and pages ----------------------------------------------------------------------------------------------


class Inline(HTMLParser):
    """The inline scripts and styles of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        data = named.get("type", "") in {"application/json", "text/template"}
        self._script = tag == "script" and "src" not in named and not data
        if tag in {"style", "base", "iframe", "object", "embed"}:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or name == "style" or (value or "").strip().lower().startswith("javascript:"):
                self.found.append(f"<{tag} {name}={value}>")

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.found.append(f"<script>{data[:80]}")


def addresses() -> list[str]:
    found = []
    for model in admin.site._registry:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        found += [reverse(f"{name}_changelist"), reverse(f"{name}_add")]
        if row := model._default_manager.first():
            found += [reverse(f"{name}_{page}", args=[row.pk]) for page in ("change", "history", "delete")]
    around = ("index", "password_change", "password_change_done", "jsi18n")
    return [*found, *(reverse(f"admin:{page}") for page in around), reverse("statistics"), "/nothing", "/"]


def test_it_shows_every_page_with_a_strict_policy_and_nothing_inline(client_of_ada, ada):
    make_run(make_schedule())
    TaskResult.objects.create(task_id="a", result='"x"')
    LogEntry.objects.log_actions(ada.pk, [ada], 2, change_message="x", single_object=True)
    found = {}
    for address in [*addresses(), LOGIN]:
        response = client_of_ada.get(address, headers={"accept": "text/html"})
        if inline := Inline(response.content.decode()).found:
            found[address] = inline
        assert_guarded(response)
    assert found == {}


def assert_guarded(response) -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in response["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == policy["object-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert "unsafe" not in response["Content-Security-Policy"]
    assert (response["X-Content-Type-Options"], response["Referrer-Policy"]) == ("nosniff", "same-origin")


def test_it_guards_errors_downloads_and_files_too(ada, settings, tmp_path, monkeypatch):
    settings.MEDIA_ROOT, settings.WHITENOISE_USE_FINDERS = tmp_path, True
    kept = files.keep("page.html", io.BytesIO(b"<script>"), "upload", "text/html")
    download = files.link(kept).removeprefix(settings.SITE_URL)
    fail(5)
    broken = Client(raise_request_exception=False)
    broken.force_login(ada)
    monkeypatch.setattr("jobs.web.views.of_runs.figures", lambda: 1 / 0)
    client = Client()
    answers = [
        *(client.get(page) for page in (download, "/livez", "/files/x", "/nothing", "/static/admin/css/base.css")),
        *(broken.get("/statistics"), log_in(), client.get("/", headers={"host": "elsewhere.example"})),
        *(Client(enforce_csrf_checks=True).post(LOGIN), client.put(LOGIN, b"x" * 100_000)),
    ]
    assert [each.status_code for each in answers] == [200, 200, 404, 404, 200, 500, 429, 400, 403, 413]
    for each in answers:
        assert_guarded(each)
        each.close()


# --- the path of the admin ------------------------------------------------------------------------------------------


@pytest.fixture
def hidden(settings) -> None:
    settings.ADMIN_PATH = "office/console/"
    _reload_urls()
    yield
    settings.ADMIN_PATH = "admin/"
    _reload_urls()


def _reload_urls() -> None:
    reload(project.urls)
    clear_url_caches()


def test_it_shows_the_path_of_the_admin_only_to_users_who_are_logged_in(ada, hidden):
    anonymous, client = Client(), Client()
    for address in ("/", "/admin/", "/statistics", "/files/x", "/nothing", "/livez", "/office/"):
        answer = anonymous.get(address)
        assert answer.status_code == (200 if address == "/livez" else 404)
        assert "office" not in answer.content.decode() + str(answer.headers)
    client.force_login(ada)
    assert client.get("/")["Location"] == "/office/console/"
    assert client.get("/statistics").status_code == 200
    index = client.get("/office/console/")
    assert index.status_code == 200
    assert 'href="/admin/' not in index.content.decode()
    assert anonymous.get("/office/console/")["Location"] == "/office/console/login/?next=/office/console/"
