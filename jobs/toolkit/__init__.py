"""What may a job use? Everything that a `tasks.py` imports from Punctual comes from here.

    from jobs.toolkit import current_run, once, progress

Modules with more than a few names are imported whole: `from jobs.toolkit import files, http, mail, webhooks`.
"""

from jobs import http
from jobs.cache.mapped import MappedResource
from jobs.cache.resources import Resource
from jobs.cache.shared import cached
from jobs.cache.shared import invalidate as invalidate_cached
from jobs.cache.shared import usage as cache_usage
from jobs.ledger.requests import RunOptions, run_job
from jobs.toolkit.current import CurrentRun, current_run, once, progress
from jobs.toolkit.queries import Table, query
from jobs.toolkit.revealing import reveal
from jobs.toolkit.uploads import accepts_body, accepts_uploads, take_upload
from jobs.worker.resources import ResourceTask
from jobs.worker.resources import invalidate as invalidate_resources

__all__ = [
    "CurrentRun",
    "MappedResource",
    "Resource",
    "ResourceTask",
    "RunOptions",
    "Table",
    "accepts_body",
    "accepts_uploads",
    "cache_usage",
    "cached",
    "current_run",
    "http",
    "invalidate_cached",
    "invalidate_resources",
    "once",
    "progress",
    "query",
    "reveal",
    "run_job",
    "take_upload",
]
