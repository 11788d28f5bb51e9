"""The entry point for ASGI servers. They read a request before any middleware runs; this bounds its size."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

django = get_asgi_application()

from project.uploads import largest_request  # noqa: E402 - its models need Django set up

Receive = Callable[[], Awaitable[dict[str, Any]]]


async def application(scope: dict[str, Any], receive: Receive, send: Callable[..., Any]) -> None:
    """Django. It sees a client that sends too much disconnect."""
    total = 0

    async def bounded() -> dict[str, Any]:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        return message if total <= largest_request() else {"type": "http.disconnect"}

    await django(scope, bounded, send)
