"""The site reads no byte of a file before it has checked the right and the CSRF token of the sender."""

import asyncio
import errno
import io
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.http import HttpResponse
from django.test import Client
from django.test.client import FakePayload
from django.urls import path, reverse
from django.views.decorators.csrf import csrf_exempt

from jobs.models import StoredFile
from jobs.models.audit import Actor
from jobs.toolkit import files, uploads
from project.uploads import Uploads

pytestmark = pytest.mark.django_db

NEW = reverse("admin:jobs_storedfile_add")
BOUNDARY = "b0undary"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture(autouse=True)
def _folders(settings, tmp_path):
    settings.MEDIA_ROOT, settings.FILE_UPLOAD_TEMP_DIR = tmp_path / "files", tmp_path / "temp"
    for folder in (settings.MEDIA_ROOT, settings.FILE_UPLOAD_TEMP_DIR):
        folder.mkdir()


class Body(FakePayload):
    """A body that counts its unread bytes and the most bytes in the folder of temporary files."""

    def __init__(self, content: bytes, folder: Path) -> None:
        super().__init__(content)
        self.folder, self.seen, self.size = folder, 0, len(content)
        self.left = self.size

    def read(self, size: int = -1) -> bytes:
        self.seen = max(self.seen, sum(path.stat().st_size for path in self.folder.iterdir()))
        data = super().read(size)
        self.left -= len(data)
        return data


def body(size: int, token: str = "made-up", order: str = "token first") -> bytes:
    part = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    fields = f'{part}"csrfmiddlewaretoken"\r\n\r\n{token}\r\n'.encode()
    file = f'{part}"file"; filename="a"\r\nContent-Type: text/plain\r\n\r\n'.encode() + b"x" * size + b"\r\n"
    return (fields + file if order == "token first" else file + fields) + f"--{BOUNDARY}--\r\n".encode()


def send(client: Client, content: bytes, settings, address: str = NEW, **headers: str):
    stream = Body(content, settings.FILE_UPLOAD_TEMP_DIR)
    request = {"CONTENT_TYPE": TYPE, "CONTENT_LENGTH": str(len(content)), "wsgi.input": stream, **headers}
    return client.generic("POST", address, **request), stream


def user(*rights: str) -> Client:
    made = User.objects.create_user("eve", is_staff=True)
    made.user_permissions.set(Permission.objects.filter(codename__in=rights))
    client = Client(enforce_csrf_checks=True)
    client.force_login(made)
    return client


def token_of(client: Client) -> str:
    client.get(reverse("admin:index"))
    return str(client.get(reverse("admin:password_change")).context["csrf_token"])


@pytest.mark.parametrize("address", [NEW, reverse("admin:login"), "/", "/files/x", "/nothing", reverse("statistics")])
def test_it_reads_no_file_of_an_anonymous_user(settings, address):
    client = Client(enforce_csrf_checks=True)
    client.cookies["csrftoken"] = token = "a" * 32
    for size in (3_000, 3_000_000):
        response, stream = send(client, body(size, token), settings, address)
        assert response.status_code in {403, 404, 405, 413}
        assert stream.seen == 0
        if size > 64_000:
            assert stream.left == stream.size


def test_it_reads_no_file_of_a_user_without_the_right_or_to_a_page_without_uploads(settings):
    client = user("view_storedfile")
    response, stream = send(client, body(3_000, token_of(client)), settings)
    assert (response.status_code, stream.seen) == (403, 0)
    assert b"log in as a user with the right to add files" in response.content
    User.objects.update(is_superuser=True)
    response, stream = send(client, body(3_000, token_of(client)), settings, reverse("admin:auth_group_add"))
    assert (response.status_code, stream.seen) == (403, 0)


@pytest.mark.parametrize(("token", "order"), [("made-up", "token first"), ("", "token first"), ("right", "file first")])
def test_it_writes_no_file_before_the_csrf_token_is_checked(settings, token, order):
    client = user("add_storedfile")
    right = token_of(client)
    content = body(1_000_000, right if token == "right" else token, order)
    response, stream = send(client, content, settings)
    assert (response.status_code, stream.seen) == (403, 0)
    assert b"CSRF" in response.content
    assert stream.left > 500_000
    assert not StoredFile.objects.exists()


def test_it_takes_a_file_with_the_right_and_the_token_in_the_form_or_in_a_header(settings):
    client = user("add_storedfile")
    right = token_of(client)
    for content, headers in [(body(200_000, right), {}), (body(200_000), {"HTTP_X_CSRFTOKEN": right})]:
        response, stream = send(client, content.replace(b"made-up", b"") if headers else content, settings, **headers)
        assert response.status_code == 302
        assert stream.seen > 0
    assert [row.size for row in StoredFile.objects.all()] == [200_000] * 2
    assert not list(settings.FILE_UPLOAD_TEMP_DIR.iterdir())


def test_it_stops_at_the_limit_while_it_reads(settings, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_UPLOAD", 150_000)
    client = user("add_storedfile")
    response, stream = send(client, body(1_000_000, token_of(client)), settings)
    assert response.status_code == 413
    assert response.content == b"The file is larger than 150,000 bytes: upload a smaller one.\n"
    assert 0 < stream.seen <= 150_000
    assert stream.left > 500_000
    response, stream = send(client, body(1_200_000, token_of(client)), settings)
    assert (response.status_code, stream.left) == (413, stream.size)
    assert not list(settings.FILE_UPLOAD_TEMP_DIR.iterdir())


def test_it_bounds_forms_by_bytes_fields_and_files(settings):
    client = user("view_storedfile")
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n'.encode()
    response, _ = send(client, part * 1_100 + f"--{BOUNDARY}--\r\n".encode(), settings)
    assert (response.status_code, response["content-type"]) == (413, "text/plain; charset=utf-8")
    response, stream = send(client, body(2_600_000), settings)
    assert (response.status_code, stream.left) == (413, stream.size)
    assert b"This request is too large" in response.content


def test_it_answers_a_body_that_breaks_off(settings):
    client = user("add_storedfile")
    content = body(1_000, token_of(client))

    class Broken(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            raise OSError

    request = {"CONTENT_TYPE": TYPE, "CONTENT_LENGTH": str(len(content)), "wsgi.input": Broken()}
    response = client.generic("POST", NEW, **request)
    assert (response.status_code, response.content) == (400, b"The request did not arrive completely: send it again.\n")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process may grow beyond 20 MB, as if the disk were full then."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_it_says_that_there_is_no_room_for_a_file_and_takes_the_next_one(settings, small_disk):
    client = user("add_storedfile")
    token = token_of(client)
    for size in (25_000_000, 20_000_001):
        response, _ = send(client, body(size, token), settings)
        assert (response.status_code, response.content) == (
            507,
            b"The site has no room for this file: tell its operator.\n",
        )
        assert not list(settings.FILE_UPLOAD_TEMP_DIR.iterdir())
    settings.FILE_UPLOAD_TEMP_DIR.rmdir()
    right = {"csrfmiddlewaretoken": token, "file": io.BytesIO(b"x")}
    assert client.post(NEW, right).status_code == 507
    settings.FILE_UPLOAD_TEMP_DIR.mkdir()
    assert send(client, body(1_000, token), settings)[0].status_code == 302
    assert StoredFile.objects.count() == 1


def test_it_says_so_too_when_a_view_finds_no_room(rf):
    site = Uploads(lambda request: HttpResponse())
    assert site.process_exception(rf.post("/"), OSError(errno.ENOSPC, "full")).status_code == 507
    assert site.process_exception(rf.post("/"), OSError(errno.EACCES, "closed")) is None


def test_it_takes_uploads_of_a_view_that_says_so(rf):
    view = csrf_exempt(uploads.accepts_uploads("jobs.add_storedfile")(lambda request: None))
    ada = Actor.of_user(User(username="ada", is_superuser=True, is_active=True))
    assert uploads.may_upload(ada, view)
    assert not uploads.may_upload(Actor.of_user(AnonymousUser()), view)
    assert not uploads.may_upload(ada, lambda request: None)


def test_it_takes_larger_bodies_of_strangers_for_a_view_that_says_so(client, settings):
    def view(request):
        return HttpResponse(len(request.body))

    marked = csrf_exempt(uploads.accepts_body(300_000)(partial(view)))
    settings.ROOT_URLCONF = (path("marked", marked), path("usual", csrf_exempt(view)))
    for address, size, status in [("/marked", 300_000, 200), ("/marked", 300_001, 413), ("/usual", 64_001, 413)]:
        answer = client.post(address, b"x" * size, content_type="application/json")
        assert answer.status_code == status
    with pytest.raises(ValueError, match="at most 2,500,000 bytes: take more as a file"):
        uploads.accepts_body(2_500_001)


@pytest.mark.parametrize("length", ["9" * 5_000, "9" * 19])
def test_it_refuses_a_length_that_no_number_holds(client, length):
    assert client.generic("POST", "/nothing", CONTENT_LENGTH=length).status_code == 413


def test_it_reads_no_more_than_the_largest_request_from_an_asgi_server(monkeypatch):
    from project.asgi import application  # late: it sets Django up

    monkeypatch.setattr(files, "LARGEST_UPLOAD", 0)
    received, answers = [], []

    async def receive() -> dict[str, object]:
        received.append({"type": "http.request", "body": b"x" * 400_000, "more_body": len(received) < 9})
        return received[-1]

    async def send(answer: dict[str, object]) -> None:
        answers.append(answer)

    scope = {"type": "http", "method": "POST", "path": "/nothing", "headers": [], "query_string": b""}
    asyncio.run(application(scope, receive, send))
    assert (len(received), answers) == (3, [])
