"""`manage.py worker [options of Celery]`: executes runs. It becomes `celery worker` of this project."""

from celery.bin.worker import worker

from jobs.management.processes import ProcessCommand


class Command(ProcessCommand):
    help = (
        "Starts a worker of this project, which executes runs: `celery worker` with this project's application,"
        " --without-gossip and --without-mingle. All options of `celery worker` may follow, such as"
        " --concurrency 4 or --queues mail,slow. SIGTERM ends it after its running jobs."
    )
    celery_command = worker
