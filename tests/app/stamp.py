"""When did a task start? Punctual's tasks and plain Celery's, for comparison, write the time into a file."""

import time
from pathlib import Path


def leave(path: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{time.time()}\n")
