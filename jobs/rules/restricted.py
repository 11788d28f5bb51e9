"""Which jobs need a right of their own? Those that an entry of RESTRICTED_JOBS covers; the most specific decides."""

from collections.abc import Collection

# By default: jobs that can destroy, copy everything, run commands or send data out.
DEFAULT = (
    *("jobs.cleanup", "jobs.backup_database", "jobs.run_command", "celery.backend_cleanup"),
    *("jobs.send_email", "jobs.send_bulk_email", "jobs.report"),
)
# By default: the management commands that jobs.run_command may run. No argument makes them harmful.
COMMANDS = ("check", "clearsessions")


def entry_of(job: str, entries: Collection[str]) -> str | None:
    """The entry that decides about a job: its name, otherwise the longest pattern; None if no entry covers it."""
    if job in entries:
        return job
    return max((entry for entry in entries if fits(entry, job)), key=len, default=None)


def fits(pattern: str, job: str) -> bool:
    """Whether a name, or a pattern with `*` at its end, covers this job."""
    return job.startswith(pattern[:-1]) if pattern.endswith("*") else job == pattern
