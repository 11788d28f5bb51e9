"""Which command starts a worker or a beat of this project?

Its one rule: it is Celery's own command with this project's application and options, so that signals, exit codes and
pools are Celery's. Options that follow replace these. `manage.py worker`, `manage.py beat` and `manage.py up` use it.
Limits: Celery must be able to import the application, so a module has to hold it under a name.
"""

import os
import sys
from pathlib import Path

from celery import current_app

from jobs.rules.errors import Invalid

# Workers of Punctual learn nothing from each other: the ledger says who holds a run. Without these options each start
# waits for the answers of all other workers, and each worker hears all events of the others.
OPTIONS = {"worker": ("--without-gossip", "--without-mingle"), "beat": ()}


def command(name: str, *arguments: str) -> list[str]:
    """The command that starts a `worker` or a `beat`, with further options of Celery. Raises `Invalid`."""
    return [sys.executable, "-m", "celery", "-A", application(), name, *OPTIONS[name], *arguments]


def application() -> str:
    """Where Celery finds the application of this process, as `module:name`. Raises `Invalid`."""
    app = current_app._get_current_object()  # type: ignore[attr-defined] # celery-types hides that it is a proxy
    for module, content in list(sys.modules.items()):
        if module != "__main__" and module.partition(".")[0] != "celery":
            for name, value in list(vars(content).items()) if content else ():
                if value is app:
                    return f"{module}:{name}"
    raise Invalid(
        "This project has no Celery application: write one, such as project/celery.py with `from jobs.worker.app import"
        " Application` and `app = Application('project')`, and import it in project/__init__.py."
    )


def replace(words: list[str]) -> None:
    """Let this process become another program, which keeps its id. Never returns. Raises OSError."""
    # `python /srv/manage.py` finds modules in /srv wherever it is called, `python -m celery` in the current folder.
    folders = [sys.path[0], str(Path(sys.argv[0]).resolve().parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, folders)))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(words[0], words)  # noqa: S606 - without a shell; the operator wrote these words
