"""The rows that the ready-made jobs store: feed entries, deliveries of mail, measurements. Read-only."""

from django.contrib import admin
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from jobs.admin.display import moment, state
from jobs.admin.guard import CappedPaginator, GuardedAdmin, KnownChoices, ReadOnlyAdmin
from jobs.models import Delivery, FeedEntry, Measurement


@admin.register(FeedEntry)
class FeedEntryAdmin(ReadOnlyAdmin, GuardedAdmin):
    list_display = ("title", "feed", "published_at", "imported_at")
    ordering = ("-id",)
    paginator = CappedPaginator
    show_full_result_count = False


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin, GuardedAdmin):
    list_display = ("address", "outcome", "reason", "begun", "id", "run_link")
    fields = list_display
    list_filter = (("state", KnownChoices),)
    search_fields = ("=id", "=address")
    ordering = ("-begun_at",)
    paginator = CappedPaginator
    show_full_result_count = False

    @admin.display(description="state", ordering="state")
    def outcome(self, delivery: Delivery) -> SafeString:
        colours = {Delivery.State.SENT: "succeeded", Delivery.State.REFUSED: "failed"}
        return state(colours.get(Delivery.State(delivery.state), "lost"), delivery.get_state_display())

    @admin.display(description="started", ordering="begun_at")
    def begun(self, delivery: Delivery) -> str:
        return moment(delivery.begun_at)

    @admin.display(description="run")
    def run_link(self, delivery: Delivery) -> str:
        return format_html('<a href="{}">show</a>', reverse("admin:jobs_run_change", args=[delivery.run_id]))


@admin.register(Measurement)
class MeasurementAdmin(ReadOnlyAdmin, GuardedAdmin):
    list_display = ("dataset", "key", "at", "column", "value", "loaded_at")
    search_fields = ("=dataset",)
    ordering = ("-dataset", "-at", "-key", "-column")  # the index of its constraint, read backwards
    paginator = CappedPaginator
    show_full_result_count = False
