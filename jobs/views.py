"""Addresses of Punctual's own beside the admin. Each parses, calls one function, and answers."""

from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import patch_cache_control
from django.views.decorators.http import require_safe

from jobs import files


@require_safe
def download(_: HttpRequest, token: str) -> HttpResponseBase:
    """A stored file, to whoever has a link to it; always to be saved, never to be shown as a page of this site."""
    try:
        row = files.of_link(token)
        content = row.file.open("rb")
    except (files.NoFileError, FileNotFoundError) as error:
        return HttpResponse(f"{error}\n", status=404, content_type="text/plain; charset=utf-8")
    response = FileResponse(content, as_attachment=True, filename=row.name, content_type=row.content_type)
    patch_cache_control(response, private=True, no_store=True)
    return response
