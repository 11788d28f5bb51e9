"""How much of each resource do the workers hold? The sums of what their live processes report."""

from typing import Any

from django.db.models import Count, OuterRef, QuerySet, Subquery, Sum

from jobs.models import Holding, ResourceVersion

FIGURES = ("entries", "bytes", "hits", "misses")


def with_sums(resources: QuerySet[ResourceVersion]) -> QuerySet[ResourceVersion]:
    """Add `sum_of_entries` and so on, and `processes_now`, to each resource; all are None where no process holds it."""
    held = Holding.objects.live().filter(resource=OuterRef("pk")).order_by().values("resource")
    sums: dict[str, Any] = {f"sum_of_{name}": Subquery(held.values(total=Sum(name))) for name in FIGURES}
    return resources.annotate(**sums, processes_now=Subquery(held.values(total=Count("pk"))))
