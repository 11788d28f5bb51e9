"""The URLs: nearly all pages are in the admin. The middleware in project/health.py answers `/livez` earlier."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path

from jobs.web import hooks, views

admin.site.site_header = admin.site.site_title = "Punctual"
admin.site.index_title = "Schedules and runs"
admin.site.enable_nav_sidebar = False  # the lists need the space

urlpatterns = [
    path("", views.home),
    path(settings.ADMIN_PATH, admin.site.urls),
    path("api/", include("jobs.web.api.urls")),
    path("files/<str:token>", views.download, name="download"),
    path("hooks/<slug:source>", hooks.receive, name="hook"),
    path("statistics", views.statistics, name="statistics"),
]
