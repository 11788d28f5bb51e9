"""Which address leads where: the admin, and the health check that load balancers and containers ask."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.generic import RedirectView

admin.site.site_header = admin.site.site_title = "Punctual"
admin.site.index_title = "Schedules and runs"


def alive(_request: HttpRequest) -> HttpResponse:
    """Answer while the web process can answer at all; it asks nothing of the database or the broker."""
    return HttpResponse("ok\n", content_type="text/plain")


urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("healthz", alive),
]
