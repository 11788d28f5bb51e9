"""Which address leads where: nearly all is in the admin. (`/healthz` is answered before, by project/health.py.)"""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from jobs.web import views

admin.site.site_header = admin.site.site_title = "Punctual"
admin.site.index_title = "Schedules and runs"
admin.site.enable_nav_sidebar = False  # the lists need the width

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("files/<str:token>", views.download, name="download"),
    path("statistics", views.statistics, name="statistics"),
]
