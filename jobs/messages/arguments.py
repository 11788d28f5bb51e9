"""Which arguments does a job take, and do these fit? Reads its signature and, where it is typed, its annotations.

    @shared_task(name="billing.remind")
    @validate_call
    def remind(month: Annotated[str, Field(pattern=r"\\d{4}-\\d{2}", description="Such as 2026-03.")]) -> None: ...

A task decorated with pydantic's `validate_call` is typed. Its schedule's page has a field for each argument. Arguments
that do not fit are refused before they are saved, before a run is claimed, and in the worker. Arguments of any other
task only have to fit its signature. `step_of` marks a task that only runs as a step of another one:

    @shared_task(name="billing.remind.one", step_of="billing.remind")
"""

import difflib
import inspect
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, cast, get_type_hints

from celery import current_app
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticInvalidForJsonSchema

from jobs.messages import destinations, discovery
from jobs.rules.errors import Invalid, UnknownJob

# The only one of Celery's own tasks that is worth scheduling: the rest run other tasks by name.
OWN_TASKS_ALLOWED = frozenset({"celery.backend_cleanup"})
NAMED = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


def check_fits(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse an unknown job (`UnknownJob`), and arguments that the job does not accept. Raises `Invalid`."""
    task = find_task(name)
    if task is None:
        close = _close_to(name, len(_tasks()))
        hint = f"Did you mean {close!r}?" if close else "Is its app in INSTALLED_APPS?"
        raise UnknownJob(f"No job is named {name!r}. {'; '.join(discovery.broken()) or hint}")
    if name.startswith("celery.") and name not in OWN_TASKS_ALLOWED:
        raise Invalid(f"{name!r} is an internal task of Celery that runs other tasks: schedule the task itself.")
    refuse_step(name)
    destinations.check_arguments(name, args, kwargs)
    check(task, args, kwargs)


def refuse_step(name: str) -> None:
    """Refuse a task that only runs as a step of a job. Raises `Invalid`."""
    if job := getattr(find_task(name), "step_of", ""):
        raise Invalid(f"{name!r} is a step of {job!r}: schedule {job!r} instead.")


def startable() -> list[str]:
    """The names of the jobs that people can schedule: all but steps and Celery's own tasks."""
    return sorted(
        name for name, task in _tasks().items() if not name.startswith("celery.") and not getattr(task, "step_of", "")
    )


@lru_cache(maxsize=1024)  # beat asks for the same ones again and again
def _close_to(name: str, _tasks_known: int) -> str:
    return next(iter(difflib.get_close_matches(name, _tasks(), n=1)), "")


def find_task(name: str) -> Any:
    """The task of that name in any installed app, or None."""
    return _tasks().get(name)


def check(task: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that the task cannot be called with. Raises `Invalid` with a sentence."""
    if not task.typing:
        return
    try:
        if model := model_of(task):
            model.model_validate(by_name(task, args, kwargs))
        else:
            _header(task)(*args, **kwargs)
    except TypeError as error:
        raise Invalid(f"The arguments do not fit {task.name!r}: {error}.") from error
    except ValidationError as error:
        raise Invalid(f"The arguments do not fit {task.name!r}: {sentence(error)}.") from error


def by_name(task: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a typed task by name. Raises TypeError when they do not fit its signature."""
    signature = _signature(task.run.raw_function, _is_bound(task))
    return dict(signature.bind(*args, **kwargs).arguments)


def model_of(task: Any) -> type[BaseModel] | None:
    """A field for each argument of a typed task; None for any other task, and where an argument cannot have one."""
    function: Callable[..., Any] | None = getattr(task.run, "raw_function", None)
    return _model(function, _is_bound(task)) if function else None


def _header(task: Any) -> Callable[..., Any]:
    """Celery's check of the arguments; a task that is a class has none."""
    header: Callable[..., Any] | None = getattr(task, "__header__", None)
    return header or inspect.signature(task.run).bind


def _is_bound(task: Any) -> bool:
    """Whether the body gets the task as its first argument. `jobs.worker.loops` and `autoretry_for` wrap the body."""
    return inspect.ismethod(task.run) or inspect.ismethod(getattr(task.run, "__wrapped__", None))


def sentence(error: ValidationError) -> str:
    """pydantic's complaints in one line, without the values. These may be long or secret."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(": ".join([*map(str, each["loc"]), each["msg"].removeprefix("Value error, ")]) for each in found)


@cache
def _signature(function: Callable[..., Any], is_bound: bool) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[is_bound:])


@cache
def _model(function: Callable[..., Any], is_bound: bool) -> type[BaseModel] | None:
    parameters = _signature(function, is_bound).parameters.values()
    if any(parameter.kind not in NAMED or parameter.name.startswith("_") for parameter in parameters):
        return None  # such a parameter cannot have a field
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in parameters
    }
    config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)
    model: type[BaseModel] = create_model(function.__name__, __config__=config, **fields)
    try:
        model.model_json_schema()
    except PydanticInvalidForJsonSchema:
        return None  # no form can show, for example, a function
    return model


_reading = threading.Lock()


@cache
def _tasks() -> dict[str, Any]:
    """Celery's registry, after importing the tasks of every app. A web process has not done that yet."""
    with _reading:  # or a second request to a new process would find only some of them
        discovery.load()
    return cast("dict[str, Any]", current_app.tasks)
