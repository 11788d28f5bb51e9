"""How large a request may a user send? The middleware checks its size before Django reads the body.

Its one rule: Django writes a file to the disk only for a page that takes uploads, from a user with the right, after the
CSRF check. Django alone writes all files of a body first and checks afterwards.
Limits: ASGI servers read requests before any middleware runs; project/asgi.py limits their size.
"""

import errno
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Never

from django.conf import settings
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent, TooManyFilesSent
from django.core.files.uploadhandler import FileUploadHandler, StopUpload, TemporaryFileUploadHandler
from django.http import HttpRequest, HttpResponse, HttpResponseBase, UnreadablePostError
from django.http.multipartparser import MultiPartParser
from django.middleware.csrf import CsrfViewMiddleware
from django.urls import Resolver404, resolve
from django.utils.deprecation import MiddlewareMixin

from jobs.models.audit import Actor, Door
from jobs.toolkit import files, uploads

logger = logging.getLogger(__name__)

LARGEST_ANONYMOUS = 64_000  # bytes; a login form has some hundred
AROUND = 1_000_000  # bytes of the fields and headers around an uploaded file
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_ROOM = "The site has no room for this file: tell its operator."
LONGEST_LENGTH = 15  # digits of Content-Length; Python reads no number of some thousand
NO_RIGHT = "You may not upload files here: log in as a user with the right to add files."


class RefusedError(Exception):
    """The site refuses the body of a request, with this answer."""

    def __init__(self, answer: HttpResponseBase) -> None:
        super().__init__()
        self.answer = answer


class Uploads(MiddlewareMixin):
    """Stands after the authentication and before the CSRF check, which reads the whole body."""

    def process_request(self, request: HttpRequest) -> HttpResponseBase | None:
        """Check the size, also for an unknown path: Django's 404 page reads the body, too."""
        if not (length := _length_of(request)):
            return None
        view = _view_of(request)
        may = uploads.may_upload(_actor_of(request), view)
        return _too_large(may) if length > max(_largest(request, may), uploads.largest_body(view)) else None

    def process_view(self, request: HttpRequest, view: Callable[..., Any], *_: Any) -> HttpResponseBase | None:
        if request.method != "POST" or request.content_type != "multipart/form-data":
            return None
        if uploads.largest_body(view) and not uploads.takes_files(view):  # it reads its body itself
            return None
        return _read(request, CheckedUpload(request, view, uploads.may_upload(_actor_of(request), view)))

    def process_exception(self, _: HttpRequest, error: Exception) -> HttpResponseBase | None:
        """Answer a view that could not store a file."""
        return _plain(507, NO_ROOM) if isinstance(error, OSError) and error.errno in FULL else None


class CheckedUpload(TemporaryFileUploadHandler):
    """Writes a file to the disk once its sender's right and CSRF token are checked, and stops at the limit.

    The token is a header, or a field before the file, as in every form of Django.
    """

    def __init__(self, request: HttpRequest, view: Callable[..., Any], may: bool) -> None:
        super().__init__(request)
        self._request, self._view, self._may = request, view, may
        self._parser: MultiPartParser | None = None

    def handle_raw_input(self, input_data: Any, META: Any, *_: Any, **__: Any) -> Any:  # noqa: N803 - Django's names
        """Parse the body here, so that `new_file` knows the fields before the file."""
        if self._parser is not None:
            return None
        self._parser = MultiPartParser(META, input_data, [self], self._request.encoding)
        return self._parser.parse()

    def new_file(self, *args: Any, **options: Any) -> None:
        if not self._may:
            raise RefusedError(_plain(403, NO_RIGHT))
        self._request._post = self._parser._post  # type: ignore[union-attr,attr-defined] # what the check reads
        if refusal := CsrfViewMiddleware(_unused).process_view(self._request, self._view, (), {}):
            raise RefusedError(refusal)
        super().new_file(*args, **options)

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        if start + len(raw_data) > files.LARGEST_UPLOAD:
            raise RefusedError(_too_large(may=True))
        super().receive_data_chunk(raw_data, start)

    def discard(self) -> None:
        """Remove the file, if one was begun. Closing removes it, also if the disk is full."""
        if hasattr(self, "file"):
            with suppress(OSError):
                self.file.close()


class NoUpload(FileUploadHandler):
    """The default handler: without a check before it, it reads no file."""

    def new_file(self, *_: Any, **__: Any) -> None:
        raise StopUpload(connection_reset=True)

    def receive_data_chunk(self, *_: Any) -> None: ...

    def file_complete(self, *_: Any) -> None: ...


def largest_request() -> int:
    """The bytes of a request with the largest file. No request of any user may be larger."""
    return files.LARGEST_UPLOAD + AROUND


def _read(request: HttpRequest, handler: CheckedUpload) -> HttpResponseBase | None:
    """Parse the body now. Returns the answer to a refused body."""
    request.upload_handlers = [handler]
    try:
        request.POST  # noqa: B018 - it parses
    except RefusedError as refused:
        answer = refused.answer
    except (RequestDataTooBig, TooManyFieldsSent, TooManyFilesSent):
        answer = _too_large(may=False)
    except UnreadablePostError:  # the client was too slow or has disconnected
        answer = _plain(400, "The request did not arrive completely: send it again.")
    except OSError:  # of the folder of temporary files
        logger.exception("The site could not write an upload to its folder of temporary files.")
        answer = _plain(507, NO_ROOM)
    else:
        return None
    handler.discard()
    request._mark_post_parse_error()  # type: ignore[attr-defined] # the page of the answer may read its fields
    return answer


def _actor_of(request: HttpRequest) -> Actor:
    token = getattr(request, "token", None)  # of the API (jobs.web.tokens)
    return Actor.of_user(request.user, Door.API if token else Door.ADMIN, token)


def _view_of(request: HttpRequest) -> Callable[..., Any] | None:
    try:
        return resolve(request.path_info).func
    except Resolver404:
        return None


def _length_of(request: HttpRequest) -> int:
    length = request.META.get("CONTENT_LENGTH") or "0"
    if len(length) > LONGEST_LENGTH:
        return sys.maxsize
    return int(length) if length.isdecimal() else 0  # without a length, Django reads no body


def _largest(request: HttpRequest, may: bool) -> int:
    if may:
        return largest_request()
    return settings.DATA_UPLOAD_MAX_MEMORY_SIZE if request.user.is_authenticated else LARGEST_ANONYMOUS


def _too_large(may: bool) -> HttpResponse:
    return _plain(
        413, files.too_large() if may else "This request is too large: send less, or log in as a user with the right."
    )


def _plain(status: int, sentence: str) -> HttpResponse:
    return HttpResponse(f"{sentence}\n", status=status, content_type="text/plain; charset=utf-8")


def _unused(_: HttpRequest) -> Never:
    raise NotImplementedError
