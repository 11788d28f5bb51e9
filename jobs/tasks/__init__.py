"""Which jobs can people schedule without writing code? The ready-made ones.

To add one, write a module here that opens with its story and holds a `@shared_task` named `jobs.<module>`, add it to
the import below (so that Celery finds it), and write its test. The admin then offers it. Names stand in database rows,
so they never change. A job of your own app needs none of this: Celery finds its `tasks.py` as well.
"""

from jobs.tasks import (
    backup_database,
    cleanup,
    etl,
    fan_out,
    heartbeat,
    http_call,
    import_feed,
    process_upload,
    report,
    run_command,
    send_bulk_email,
    send_email,
    thumbnails,
)

__all__ = [
    "backup_database",
    "cleanup",
    "etl",
    "fan_out",
    "heartbeat",
    "http_call",
    "import_feed",
    "process_upload",
    "report",
    "run_command",
    "send_bulk_email",
    "send_email",
    "thumbnails",
]
