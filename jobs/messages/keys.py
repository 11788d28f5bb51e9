"""Which keys has a log line about a run? The ids of its run, schedule, attempt, task and request: `jobs.logs` says how.

Its one rule: lines of all processes name them alike. `schedule` is the id of the schedule, as in the API.
"""

from typing import Any

from jobs.messages import request_ids
from jobs.messages.envelope import Sendable


def of_run(run: Sendable) -> dict[str, Any]:
    """The keys of a line about a run."""
    headers = (run.options or {}).get("headers") or {}
    schedule = of_schedule([run.schedule_id, run.schedule_name])
    own = {"run": str(run.id), **schedule, "attempt": run.attempt, "task": run.task}
    return request_ids.keys_of(headers.get(request_ids.HEADER)) | own


def of_schedule(header: object) -> dict[str, Any]:
    """The keys of the schedule in a header `SCHEDULE_HEADER`; none for a header of another form."""
    match header:
        case [int() as schedule, str() as name]:
            return {"schedule": schedule, "schedule_name": name}
    return {}
