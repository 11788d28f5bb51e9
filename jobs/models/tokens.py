"""Which programs may use the API? Each presents a token of a user, and may do what the user and the token may.

Its one rule: only the digest of a secret is stored, so nothing in the database, in a backup or on a page can be used as
a token. One UPDATE admits a request: it checks the rate with the database's clock, so any number of web processes keep
one rate, with or without a broker.
"""

import hashlib
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypedDict, Unpack

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import Case, Q, When
from django.db.models.functions import Coalesce, Greatest, Now

from jobs.models import rights
from jobs.models.audit import NEEDED, Act, Actor, Changed, Kind, note
from jobs.models.clock import database_now
from jobs.models.prepared import Update
from jobs.models.refusals import refusal, sole
from jobs.models.runs import LONGEST_ACTOR
from jobs.rules import restricted
from jobs.rules.errors import Forbidden, Invalid

PREFIX = "punctual_"  # so that scanners of repositories recognize a leaked secret
HINT = len(PREFIX) + 4  # characters of a secret that lists show
LONGEST_TOKEN_NAME = 100  # characters
WINDOW = timedelta(minutes=1)
LONGEST_LIFE = timedelta(days=36525)
USUAL_RATE, MOST_RATE = 600, 60_000  # requests per minute
# The permissions to see rows through the API, and those for its acts.
VIEWING = {
    *("django_celery_beat.view_periodictask", "django_celery_results.view_taskresult", "jobs.view_run"),
    *("jobs.view_backfill", "jobs.view_node", "jobs.view_measurement", "jobs.view_resourceversion"),
    *("jobs.view_storedfile", "jobs.view_feedentry", "jobs.view_setaside", "jobs.view_delivery"),
    *("jobs.view_auditentry", "jobs.view_webhooksource", "jobs.view_webhook", "jobs.view_apitoken"),
    *("jobs.view_alert", "jobs.view_channel", "jobs.view_silence"),
}
UNSCOPED = {(Kind.TOKEN, Act.ADD), (Kind.TOKEN, Act.DELETE)}  # acts that the API does not have
ACTING = {permission for act, permission in NEEDED.items() if act not in UNSCOPED}


class Admission(NamedTuple):
    """The token of a request, or None if it is not valid; and the seconds to wait if its rate is exceeded."""

    token: "ApiToken | None"
    retry_after: float = 0.0


class Limits(TypedDict, total=False):
    """What a token is limited to, besides its scopes."""

    jobs: Sequence[str]  # names, or patterns such as billing.*
    schedules: Sequence[int]  # ids
    expires_at: datetime | None
    rate: int  # requests per minute


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def usable(self) -> "ApiTokenQuerySet":
        """Tokens that are neither revoked nor expired."""
        return self.filter(Q(expires_at=None) | Q(expires_at__gt=Now()), revoked_at=None)

    def issue(
        self, name: str, user: Any, scopes: Collection[str], actor: Actor | str, **limits: Unpack[Limits]
    ) -> "tuple[ApiToken, str]":
        """Make a token of a user; returns it with its secret, which is shown only now.

        Raises `Invalid`, also if the user lacks a permission among the scopes, and `Conflict` for a name in use.
        """
        actor = Actor.of(actor)
        secret = f"{PREFIX}{secrets.token_urlsafe(32)}"
        token = self.model(
            name=name.strip(),
            user=user,
            digest=digest_of(secret),
            hint=secret[:HINT],
            scopes=sorted(set(scopes)),
            jobs=sorted(set(limits.get("jobs", ()))),
            schedules=sorted(set(limits.get("schedules", ()))),
            created_by=actor.name,
            expires_at=limits.get("expires_at"),
            rate=limits.get("rate", USUAL_RATE),
        )
        actor.check_act(Kind.TOKEN, Act.ADD)
        if actor.token is not None:  # a limited one could make one without limits
            raise Forbidden("A token cannot make tokens. Use the admin, or manage.py token.")
        token.refuse(actor)
        with sole(token, "token"):
            token.save(force_insert=True)
            note(actor, Kind.TOKEN, Act.ADD, [Changed(token.pk, token.name, None, token.columns())])
        return token, secret

    def admit(self, secret: str) -> Admission:
        """Check the secret of a request, count the request, and note when the token was used."""
        token = self.usable().select_related("user").filter(digest=digest_of(secret)).first()
        if token is None or not token.user.is_active:
            return Admission(None)
        each = WINDOW / token.rate
        if _COUNT(pk=token.pk, each=each, ahead=WINDOW - each):
            return Admission(token)
        free_at = self.usable().filter(pk=token.pk).values_list("next_free_at", flat=True).first()
        if free_at is None:  # revoked or expired meanwhile
            return Admission(None)
        wait = free_at - (WINDOW - each) - database_now()
        return Admission(token, max(wait.total_seconds(), 0.001))

    def revoke(self, actor: Actor | str) -> int:
        """Make these tokens useless; returns how many were usable.

        Users need no permission for their own tokens, and a token none for itself.
        """
        actor = Actor.of(actor)
        with transaction.atomic():
            tokens = list(self.filter(revoked_at=None).order_by("pk").select_for_update())
            if actor.user is not None and not all(token.is_own(actor) for token in tokens):
                actor.check_act(Kind.TOKEN, Act.REVOKE)
            self.model._default_manager.filter(pk__in=[token.pk for token in tokens]).update(revoked_at=Now())
            note(actor, Kind.TOKEN, Act.REVOKE, [Changed(token.pk, token.name) for token in tokens], "Revoked.")
        return len(tokens)

    def remove(self, actor: Actor | str) -> int:
        """Revoke and delete these tokens, which frees their names; returns how many there were."""
        actor = Actor.of(actor)
        actor.check_act(Kind.TOKEN, Act.DELETE)
        with transaction.atomic():
            self.revoke(actor)
            tokens = self.select_related("user").order_by("pk").select_for_update(of=("self",))
            gone = [Changed(token.pk, token.name, token.columns()) for token in tokens]
            note(actor, Kind.TOKEN, Act.DELETE, gone)
            self.model._default_manager.filter(pk__in=[token.key for token in gone]).delete()
        return len(gone)


class ApiToken(models.Model):
    """A token of a user. It includes some of the user's permissions, and may be limited to some schedules and jobs."""

    name = models.CharField(max_length=LONGEST_TOKEN_NAME, unique=True, help_text="The program that uses it.")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        related_name="+",
        help_text="It never allows more than this user may do.",
    )
    digest = models.CharField(max_length=64, unique=True, editable=False, help_text="The SHA-256 of its secret.")
    hint = models.CharField(max_length=20, editable=False, help_text="The first characters of its secret.")
    scopes = models.JSONField(default=list, help_text="The permissions that it includes.")
    jobs = models.JSONField(default=list, blank=True, help_text="Names, or patterns such as billing.*; empty: all.")
    schedules = models.JSONField(default=list, blank=True, help_text="The ids of schedules; empty: all.")
    rate = models.PositiveIntegerField(
        default=USUAL_RATE,
        validators=[MinValueValidator(1), MaxValueValidator(MOST_RATE)],
        help_text="Requests per minute.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    created_by = models.CharField(max_length=LONGEST_ACTOR, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Empty: never.")
    revoked_at = models.DateTimeField(null=True, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False)
    next_free_at = models.DateTimeField(
        null=True, editable=False, help_text="When all requests so far are paid for at its rate."
    )

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        verbose_name = "API token"

    def __str__(self) -> str:
        return self.name

    @property
    def is_limited(self) -> bool:
        """Whether it is limited to some schedules or jobs."""
        return bool(self.jobs or self.schedules)

    def covers(self, job: str, schedule: int | None = None) -> bool:
        """Whether its limits leave this job, or this schedule of the job, within reach."""
        return not self.is_limited or schedule in self.schedules or restricted.entry_of(job, self.jobs) is not None

    def is_own(self, actor: Actor) -> bool:
        """Whether it is the token that the user of a request came with, or without one, whether it is of this user."""
        return bool(self.pk == actor.token.pk if actor.token else self.user_id == actor.user.pk)

    def columns(self) -> dict[str, Any]:
        """What the audit row of a new token shows."""
        expires = self.expires_at.isoformat() if self.expires_at else None
        shown = {name: getattr(self, name) for name in ("hint", "scopes", "jobs", "schedules", "rate")}
        return {"user": self.user.get_username(), **shown, "expires_at": expires}

    def problem_at(self, now: datetime) -> str:
        """Why requests with it are refused; empty if they are not."""
        if self.revoked_at:
            return "revoked"
        if self.expires_at and self.expires_at <= now:
            return "expired"
        return "" if self.user.is_active else "its user is disabled"

    def refuse(self, actor: Actor) -> None:
        """Refuse a token that would never work, or that allows more than its maker may. Raises `Invalid`."""
        try:
            self.clean_fields(exclude={"user"})
        except ValidationError as error:
            raise refusal(error) from error
        if not self.name.isprintable():
            raise Invalid("Write the name of a token in one line.")
        if not self.scopes:
            raise Invalid("A token without a permission allows nothing: choose at least one scope.")
        if self.expires_at and not timedelta(0) < self.expires_at - database_now() < LONGEST_LIFE:
            raise Invalid("Choose an expiry in the next hundred years, or none.")
        of_user = Actor.of_user(self.user)
        for scope in self.scopes:
            of_user.check(scope)
        if actor.user is not None and actor.user.pk != self.user.pk:
            raise Forbidden("Users make tokens for themselves only: log in as the user, or use manage.py token.")


def _counting(pk: Any, each: Any, ahead: Any) -> Any:
    """Count a request of a token, `each` of which takes so long, unless it is too far `ahead` of its rate."""
    is_wrong = Q(next_free_at__gt=Now() + WINDOW)  # the clock has gone back since
    free = Q(next_free_at=None) | Q(next_free_at__lte=Now() + ahead) | is_wrong
    begins = Case(When(is_wrong, then=Now()), default=Greatest(Coalesce("next_free_at", Now()), Now()))
    counted = {"next_free_at": begins + each, "last_used_at": Now()}
    return ApiToken.objects.usable().filter(free, pk=pk), counted


_COUNT = Update(
    _counting, {"pk": models.BigIntegerField(), "each": models.DurationField(), "ahead": models.DurationField()}
)


def is_scope(permission: str) -> bool:
    """Whether a permission means something to the API: to see rows, to act, or to start a restricted job."""
    return permission in VIEWING | ACTING or permission.startswith(f"jobs.{rights.PREFIX}")


def digest_of(secret: str) -> str:
    """What is stored of a secret. It is random and long, so one round of SHA-256 suffices."""
    return hashlib.sha256(secret.encode("utf-8", "backslashreplace")).hexdigest()
