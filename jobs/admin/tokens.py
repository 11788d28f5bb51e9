"""Tokens of the API: users make them, see what they allow, and revoke or delete them. No token can be edited.

Its one rule: the secret of a new token stands in the answer to its form, and nowhere else: neither in a row nor in a
session. Users see their own tokens; users who may change tokens see the tokens of all users.
"""

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.widgets import AdminTextareaWidget
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django_celery_beat.models import PeriodicTask

from jobs.admin.display import NOTHING, counted, moment, state
from jobs.admin.guard import CappedPaginator, ChosenFilter, GuardedAdmin, ReadOnlyAdmin, actor_of
from jobs.admin.typed import LinesField
from jobs.messages.arguments import find_task
from jobs.models import ApiToken
from jobs.models.audit import Actor
from jobs.models.tokens import is_scope
from jobs.rules.errors import Invalid

USUAL_LIFE = timedelta(days=365)
NAMED = 3  # scopes that the list names; it counts the rest
STATES = {"": "succeeded", "revoked": "cancelled", "expired": "expired"}  # whose colours show problems of tokens


def scopes_of(user: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """The permissions of a user that mean something to the API, by the kind of row: choices for a form."""
    held = user.get_all_permissions()
    groups: dict[str, list[tuple[str, str]]] = {}
    for permission in Permission.objects.select_related("content_type"):  # in Django's order: by kind of row
        kind = permission.content_type
        scope = f"{kind.app_label}.{permission.codename}"
        if scope in held and is_scope(scope):
            groups.setdefault(kind.name.capitalize(), []).append((scope, permission.name))
    return list(groups.items())


class Lines(LinesField):
    """A list of texts, one per line and each once."""

    widget = AdminTextareaWidget(attrs={"rows": 3})

    def to_python(self, value: Any) -> Any:
        return list(dict.fromkeys(super().to_python(value)))


class TokenForm(forms.ModelForm[ApiToken]):
    scopes = forms.MultipleChoiceField(
        label="Permissions",
        widget=forms.CheckboxSelectMultiple,
        help_text="It never allows more than you may do at that time.",
    )
    jobs = Lines(
        required=False,
        label="Only these jobs",
        help_text="Names, or patterns such as billing.*, one per line. If this and the next field are empty: all.",
    )
    schedules = Lines(
        required=False,
        label="Only these schedules",
        help_text="Names, one per line, besides the schedules of these jobs.",
    )
    actor = Actor("code")  # the user of the page

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(scopes := self.fields.get("scopes"), forms.MultipleChoiceField):
            scopes.choices = scopes_of(self.actor.user)

    def clean_jobs(self) -> list[str]:
        names: list[str] = self.cleaned_data["jobs"]
        for name in names:
            if not name.endswith("*") and find_task(name) is None:
                raise ValidationError(f"No job is named {name!r}: correct it, or write a pattern such as billing.*.")
        return names

    def clean_schedules(self) -> list[int]:
        names = self.cleaned_data["schedules"]
        known = dict(PeriodicTask.objects.filter(name__in=names).values_list("name", "pk"))
        for name in names:
            if name not in known:
                raise ValidationError(f"No schedule is named “{name}”: copy its name from the list of schedules.")
        return list(known.values())

    def clean(self) -> dict[str, Any]:
        """Refuse a token that would never work, with the model's own sentence."""
        data = super().clean() or {}
        if not self.errors:
            try:
                ApiToken(user=self.actor.user, **data).refuse(self.actor)
            except Invalid as error:
                raise ValidationError(str(error)) from error
        return data


class StateFilter(ChosenFilter):
    title = "state"
    parameter_name = "state"

    def conditions(self) -> dict[str, Q]:
        expired = Q(expires_at__lte=Now())
        return {
            "usable": Q(revoked_at=None, user__is_active=True) & ~expired,
            "expired": Q(revoked_at=None) & expired,
            "revoked": Q(revoked_at__isnull=False),
        }


@admin.action(description="Revoke", permissions=["view"])
def revoke(_: admin.ModelAdmin[ApiToken], request: HttpRequest, queryset: QuerySet[ApiToken]) -> None:
    chosen = ApiToken.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
    try:
        number = chosen.revoke(actor_of(request))
    except Invalid as error:
        messages.error(request, str(error))
        return
    if number:
        messages.success(request, f"{counted(number, 'token was', 'tokens were')} revoked: no request may use it now.")
    else:
        messages.info(request, "No token was revoked: all selected tokens were revoked before.")


@admin.register(ApiToken)
class TokenAdmin(ReadOnlyAdmin, GuardedAdmin):
    form = TokenForm
    actions = (revoke,)
    change_form_template = "admin/jobs/token_page.html"
    list_display = ("name", "user", "status", "permissions", "limits", "rate", "expires", "last_used")
    list_filter = (StateFilter,)
    list_select_related = ("user",)
    search_fields = ("name",)
    ordering = ("name",)
    paginator = CappedPaginator
    asked = ("name", "scopes", "jobs", "schedules", "expires_at", "rate")  # of a user who makes one
    shown = (
        *("name", "user", "status", "hint", "all_permissions", "limits", "rate"),
        *("expires", "last_used", "created", "created_by"),
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return admin.ModelAdmin.has_add_permission(self, request)

    def has_view_permission(self, request: HttpRequest, _: Any = None) -> bool:
        """Users who may make tokens see their own; `get_queryset` limits them to these."""
        return any(request.user.has_perm(f"jobs.{may}_apitoken") for may in ("view", "add", "change"))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_delete_permission(self, request, obj)

    def delete_model(self, request: HttpRequest, obj: ApiToken) -> None:
        ApiToken.objects.filter(pk=obj.pk).remove(actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ApiToken]) -> None:
        ApiToken.objects.filter(pk__in=list(queryset.values_list("pk", flat=True))).remove(actor_of(request))

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiToken]:
        tokens: QuerySet[ApiToken] = super().get_queryset(request)
        return tokens if request.user.has_perm("jobs.change_apitoken") else tokens.filter(user=request.user.pk)

    def get_fields(self, _request: HttpRequest, obj: ApiToken | None = None) -> Any:
        return self.shown if obj else self.asked

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        form: Any = super().get_form(request, obj, change, **options)
        form.actor = actor_of(request)  # Django makes a class for each request
        return form

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        expires_at = (timezone.now() + USUAL_LIFE).replace(microsecond=0)
        return {"expires_at": expires_at} | super().get_changeform_initial_data(request)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        one_button = {"show_save_and_add_another": False, "show_save_and_continue": False}
        return super().add_view(request, form_url, {**(extra_context or {}), **one_button})

    def save_model(self, _request: HttpRequest, obj: Any, form: Any, _change: bool) -> None:
        issued, obj.secret = ApiToken.objects.issue(user=form.actor.user, actor=form.actor, **form.cleaned_data)
        obj.pk = issued.pk

    def response_add(self, request: HttpRequest, obj: Any, _: Any = None) -> HttpResponse:
        """Show the secret in this answer: a redirect would have to store it."""
        context = {"opts": self.opts, "title": f"Token “{obj}”", "token": obj, "secret": obj.secret}
        return TemplateResponse(
            request, "admin/jobs/token_made.html", {**self.admin_site.each_context(request), **context}
        )

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        token = self.get_object(request, unquote(object_id))
        if token is not None and request.method == "POST" and self.has_view_permission(request):
            revoke(self, request, ApiToken.objects.filter(pk=token.pk))
            return HttpResponseRedirect(reverse("admin:jobs_apitoken_change", args=[token.pk]))
        more = {"can_be_revoked": token is not None and token.revoked_at is None}
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **more})

    @admin.display(description="state")
    def status(self, token: ApiToken) -> SafeString:
        problem = token.problem_at(timezone.now())
        shown = state(STATES.get(problem, "failed"), problem or "usable")
        return format_html("{} {}", shown, moment(token.revoked_at)) if token.revoked_at else shown

    @admin.display(description="permissions")
    def permissions(self, token: ApiToken) -> str:
        names = [scope.partition(".")[2] for scope in token.scopes]
        more = [counted(len(names) - NAMED, "more", "more")] if len(names) > NAMED else []
        return ", ".join([*names[:NAMED], *more])

    @admin.display(description="permissions")
    def all_permissions(self, token: ApiToken) -> SafeString:
        return format_html_join(mark_safe("<br>"), "{}", ((scope,) for scope in token.scopes))

    @admin.display(description="only")
    def limits(self, token: ApiToken) -> str:
        """The jobs and schedules that the token is limited to."""
        if not token.is_limited:
            return "all jobs and schedules"
        known = PeriodicTask.objects.in_bulk(token.schedules) if token.schedules else {}
        schedules = [f"“{known[key].name}”" if key in known else f"schedule {key} (deleted)" for key in token.schedules]
        return ", ".join([*token.jobs, *schedules])

    @admin.display(description="expires", ordering="expires_at")
    def expires(self, token: ApiToken) -> str:
        return moment(token.expires_at) if token.expires_at else "never"

    @admin.display(description="last used", ordering="last_used_at")
    def last_used(self, token: ApiToken) -> str:
        return moment(token.last_used_at) if token.last_used_at else NOTHING

    @admin.display(description="created", ordering="created_at")
    def created(self, token: ApiToken) -> str:
        return moment(token.created_at)
