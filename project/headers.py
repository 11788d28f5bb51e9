"""Which content may browsers load into our pages? Only scripts, styles and pictures of this site.

Its one rule: every response has these headers, including errors, downloads and the health check. So this middleware is
the first.
"""

from csp.middleware import CSPMiddleware
from django.http import HttpRequest, HttpResponseBase

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Headers(CSPMiddleware):
    """Content-Security-Policy, as CONTENT_SECURITY_POLICY says, and `ALWAYS`."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        for name, value in ALWAYS.items():
            response.headers.setdefault(name, value)
        return super().process_response(request, response)
