"""What does a job say of itself? Its name, its first line, and its arguments as a JSON Schema.

Its one rule: the schema of a typed job is the one that its arguments are checked by. That of any other job follows from
its signature, and from those annotations that a schema can express; any value fits the other arguments.
"""

import inspect
from contextlib import suppress
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from jobs.messages.arguments import model_of

INEXPRESSIBLE = (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError)
VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def summary_of(task: Any) -> str:
    """The first line of the docstring; empty without one."""
    return next(iter(inspect.cleandoc(task.__doc__ or "").splitlines()), "")


def is_typed(task: Any) -> bool:
    """Whether the values of its arguments are checked, and not only their names."""
    return model_of(task) is not None


@lru_cache(maxsize=1024)
def schema_of(task: Any) -> dict[str, Any]:
    """The keyword arguments of the job, as a JSON Schema of an object."""
    if model := model_of(task):
        return model.model_json_schema(by_alias=False)
    parameters = inspect.signature(task.run).parameters.values()
    named = [each for each in parameters if each.kind not in VARIADIC]
    schema: dict[str, Any] = {"title": task.name, "type": "object", "properties": {}}
    schema["required"] = [each.name for each in named if each.default is each.empty]
    schema["additionalProperties"] = not task.typing or len(named) < len(parameters)
    hints = _hints_of(task.run)
    for each in named:
        schema["properties"][each.name] = _property(each, hints.get(each.name, Any), schema)
    return schema


def _hints_of(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that exist for the type checker only
        return {}


def _property(parameter: inspect.Parameter, hint: Any, whole: dict[str, Any]) -> dict[str, Any]:
    """The schema of one argument. Its definitions move to the top of the whole, where its references look."""
    try:
        schema = TypeAdapter(hint).json_schema()
    except INEXPRESSIBLE:
        schema = {}
    if definitions := schema.pop("$defs", None):
        whole.setdefault("$defs", {}).update(definitions)
    if parameter.default is not parameter.empty:
        with suppress(PydanticSerializationError, ValueError):  # a default that JSON cannot express
            schema["default"] = to_jsonable_python(parameter.default)
    return schema
