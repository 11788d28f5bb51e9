"""What do people see and do in Django's admin? Schedules with their policies, the ledger of runs, and resources.

Its one rule: a page shows what the ledger says and asks other modules to act. What cannot run is refused here with the
sentence the calendar gives; what was written past these forms is flagged with the same sentence. Runs are read-only.
"""

from jobs.admin import catalogue, files, resources, runs, schedules

__all__ = ["catalogue", "files", "resources", "runs", "schedules"]
