"""The entry point for ASGI servers. They read a request before any middleware; here only its size is bounded."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

LARGEST = 101_000_000  # bytes, as in project/uploads.py
Receive = Callable[[], Awaitable[dict[str, Any]]]

django = get_asgi_application()


async def application(scope: dict[str, Any], receive: Receive, send: Callable[..., Any]) -> None:
    """Django, with a client that seems to be gone once it has sent too much."""
    total = 0

    async def bounded() -> dict[str, Any]:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        return message if total <= LARGEST else {"type": "http.disconnect"}

    await django(scope, bounded, send)
