"""What is kept?

The ledger and its companions: runs, steps, policies, nodes, resources, and the rows of ready-made jobs.
"""

from jobs.models.alerts import Alert, Channel, Condition, Notice, Silence, Tally, UsualRuntime, Watch
from jobs.models.attempts import Attempt, Effect, RunLog
from jobs.models.audit import Act, Actor, AuditEntry, Door, Kind
from jobs.models.catalogue import LONGEST_ADDRESS, Delivery, FeedEntry, StoredFile
from jobs.models.clock import database_now, lease
from jobs.models.installation import Installation
from jobs.models.measurements import Measurement
from jobs.models.nodes import LONGEST_PROJECT, Node, Release
from jobs.models.resources import Holding, ResourceVersion
from jobs.models.runs import (
    ACTIVE,
    ENDED_BY_ITSELF,
    LONGEST_ACTOR,
    LONGEST_ERROR_TEXT,
    LONGEST_NAME,
    LONGEST_REASON,
    SENDING,
    TERMINAL,
    TRANSITIONS,
    UNSTARTED,
    Ended,
    Run,
    RunQuerySet,
    State,
    Trigger,
    new_run_id,
    worker_text,
)
from jobs.models.schedules import CATCH_UP_CHOICES, KINDS, Backfill, ChangedTiming, Policy, PolicyQuerySet
from jobs.models.set_aside import SetAside
from jobs.models.steps import Step
from jobs.models.timings import PastTiming
from jobs.models.tokens import ApiToken
from jobs.models.webhooks import Webhook, WebhookSource

__all__ = [
    "ACTIVE",
    "CATCH_UP_CHOICES",
    "ENDED_BY_ITSELF",
    "KINDS",
    "LONGEST_ACTOR",
    "LONGEST_ADDRESS",
    "LONGEST_ERROR_TEXT",
    "LONGEST_NAME",
    "LONGEST_PROJECT",
    "LONGEST_REASON",
    "SENDING",
    "TERMINAL",
    "TRANSITIONS",
    "UNSTARTED",
    "Act",
    "Actor",
    "Alert",
    "ApiToken",
    "Attempt",
    "AuditEntry",
    "Backfill",
    "ChangedTiming",
    "Channel",
    "Condition",
    "Delivery",
    "Door",
    "Effect",
    "Ended",
    "FeedEntry",
    "Holding",
    "Installation",
    "Kind",
    "Measurement",
    "Node",
    "Notice",
    "PastTiming",
    "Policy",
    "PolicyQuerySet",
    "Release",
    "ResourceVersion",
    "Run",
    "RunLog",
    "RunQuerySet",
    "SetAside",
    "Silence",
    "State",
    "Step",
    "StoredFile",
    "Tally",
    "Trigger",
    "UsualRuntime",
    "Watch",
    "Webhook",
    "WebhookSource",
    "database_now",
    "lease",
    "new_run_id",
    "worker_text",
]
