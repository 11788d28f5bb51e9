"""Who is told about changes of health? The channels, the same as in the admin.

Its one rule: the address of a channel stays secret; a channel names the variable that holds it. A token that is limited
to some schedules meets no channel.
"""

from datetime import datetime, time
from typing import Annotated, Any, Literal

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from ninja import Field, Query, Router, Schema, Status
from pydantic import WithJsonSchema

from jobs.alerts import acts, channels
from jobs.models import LONGEST_NAME, Channel
from jobs.models.alerts import LONGEST_CHANNEL
from jobs.web.api.lists import Page, Paging, page
from jobs.web.api.routes import In, MissingError, RowId, actor_of, needs

router = Router(tags=["alerts"])

KindName = Literal["mail", "webhook", "apprise", "ping"]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_CHANNEL)]
Pattern = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Patterns = Annotated[
    list[Pattern],
    Field(
        max_length=acts.MOST_PATTERNS,
        description="Names of schedules or jobs, or patterns such as billing.*; none of them: all.",
    ),
]
ChosenHealth = Annotated[str, WithJsonSchema({"type": "string", "enum": list(acts.HEALTHS)})]
Addresses = Annotated[list[str], Field(max_length=acts.MOST_ADDRESSES, description="Of a mail channel.")]
UrlName = Annotated[
    str, Field(max_length=100, description="Of other kinds: the NAME of the variable CHANNEL_URL_NAME.")
]
Healths = Annotated[
    list[ChosenHealth],
    Field(max_length=len(acts.HEALTHS), description="Which changes it is told about, besides recoveries; none: all."),
]
OfSystem = Annotated[bool, Field(description="Whether it is told about beats, workers, queues and the broker.")]
Zone = Annotated[str, Field(max_length=63, description="Of its readers; empty: that of the site.")]


class ChannelOut(Schema):
    id: int
    name: str
    kind: KindName
    addresses: list[str]
    url: str = Field(description="The NAME of the variable CHANNEL_URL_NAME that holds its address.")
    is_enabled: bool
    patterns: list[str]
    healths: list[str]
    of_system: bool
    zone: str
    quiet_from: time | None
    quiet_until: time | None
    created_at: datetime
    sent_at: datetime | None = Field(description="When its last message was sent.")
    problem: str = Field(description="Why its last message could not be sent; empty if it was.")
    problem_since: datetime | None
    warning: str = Field(description="Why this process could not send through it; empty if it could.")


class ChannelForm(In):
    """The columns that a request gives; a change leaves the others alone."""

    name: Name = ""
    kind: KindName = "mail"
    addresses: Addresses = []
    url: UrlName = ""
    is_enabled: bool = True
    patterns: Patterns = []
    healths: Healths = []
    of_system: OfSystem = True
    zone: Zone = ""
    quiet_from: time | None = None
    quiet_until: time | None = None


class NewChannel(ChannelForm):
    """All columns of a channel; one that the request leaves out has the default."""

    name: Name


class Sent(Schema):
    sentence: str


@router.get("", response=Page[ChannelOut])
@needs("jobs.view_channel")
def list_channels(request: HttpRequest, paging: Query[Paging]) -> Any:
    """Channels by name."""
    return page(request, _channels(request), paging, ["name"], _shown)


@router.post("", response={201: ChannelOut})
def create_channel(request: HttpRequest, response: HttpResponse, body: NewChannel) -> Any:
    """Create a channel. It is told about changes from now on."""
    channel = Channel(**body.dict())
    acts.save_channel(channel, actor_of(request))
    response["Location"] = f"{request.path}/{channel.pk}"
    return Status(201, _shown(_found(request, channel.pk).get()))


@router.get("/{channel}", response=ChannelOut)
@needs("jobs.view_channel")
def get_channel(request: HttpRequest, channel: RowId) -> Any:
    """One channel, and why its last message could not be sent."""
    return _shown(_found(request, channel).get())


@router.patch("/{channel}", response=ChannelOut)
def change_channel(request: HttpRequest, channel: RowId, body: ChannelForm) -> Any:
    """Change the given columns; the others stay."""
    acts.change_channels(_found(request, channel), body.dict(exclude_unset=True), actor_of(request))
    return _shown(_found(request, channel).get())


@router.delete("/{channel}", response={204: None})
def delete_channel(request: HttpRequest, channel: RowId) -> Any:
    """Delete a channel, with the messages that it has not been sent yet."""
    acts.delete_channels(_found(request, channel), actor_of(request))
    return Status(204, None)


@router.post("/{channel}/test", response=Sent)
def test_channel(request: HttpRequest, channel: RowId) -> Any:
    """Send a test message now, within 20 seconds. 422 says why it could not be sent."""
    acts.test_channel(_found(request, channel).get(), actor_of(request))
    return {"sentence": "The test message was sent."}


def _channels(request: HttpRequest) -> QuerySet[Channel]:
    token = actor_of(request).token
    return Channel.objects.none() if token is not None and token.is_limited else Channel.objects.all()


def _found(request: HttpRequest, key: int) -> QuerySet[Channel]:
    """The channel as acts take it. Raises `MissingError`."""
    found = _channels(request).filter(pk=key)
    if not found.exists():
        raise MissingError(f"There is no channel {key}: list the channels at /api/channels.")
    return found


def _shown(channel: Channel) -> dict[str, Any]:
    stored = {name: getattr(channel, name) for name in ChannelOut.model_fields if name != "warning"}
    return {**stored, "warning": channels.why_not(channel)}
