"""The URLs: nearly all pages are in the admin. The middleware in project/health.py answers `/healthz` earlier."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from jobs.web import views

admin.site.site_header = admin.site.site_title = "Punctual"
admin.site.index_title = "Schedules and runs"
admin.site.enable_nav_sidebar = False  # the lists need the space

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("files/<str:token>", views.download, name="download"),
    path("statistics", views.statistics, name="statistics"),
]
