"""`manage.py beat [options of Celery]`: claims and sends due runs. It becomes `celery beat` of this project."""

from celery.bin.beat import beat

from jobs.management.processes import ProcessCommand


class Command(ProcessCommand):
    help = (
        "Starts a beat of this project, which makes and sends the due runs: `celery beat` with this project's"
        " application. Any number may run at the same time. All options of `celery beat` may follow."
    )
    celery_command = beat
