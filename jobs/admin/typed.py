"""Which fields does the page of a schedule have for the arguments of its job? One for each, where the job is typed.

What a person leaves empty, or as it was by default, is not stored: so it follows the job when its defaults change.
"""

import json
from collections.abc import Callable
from typing import Any

from django import forms
from pydantic import BaseModel, ValidationError

from jobs import arguments

PREFIX = "argument_"
MARK = "arguments_of"  # the hidden field that says for which job the page was made
EMPTY: tuple[Any, ...] = (None, "", [], {})


class LinesField(forms.CharField):
    """A list of texts, one on each line."""

    widget = forms.Textarea(attrs={"rows": 4})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(self.to_python(data) != (initial or []))


class Decoder(json.JSONDecoder):
    def decode(self, text: str, *_: Any) -> Any:
        """As the parent's, but what is nested too deeply is an error in the text, which Django's field expects."""
        try:
            return super().decode(text)
        except RecursionError as error:
            raise json.JSONDecodeError("It is nested too deeply", text[:1], 0) from error


def form_for(base: type[forms.ModelForm[Any]], task: Any) -> type[forms.ModelForm[Any]]:
    """The form of a schedule with a field for each argument of a typed task."""
    model = arguments.model_of(task)
    schema = model.model_json_schema() if model else {}
    required = set(schema.get("required", ()))
    fields: dict[str, Any] = {
        f"{PREFIX}{name}": _field(_resolved(each, schema), required=name in required)
        for name, each in schema.get("properties", {}).items()
    }
    fields[MARK] = forms.CharField(widget=forms.HiddenInput, required=False, initial=task.name)
    return type(base.__name__, (base,), {"arguments": model, **fields})


def names(form: type[forms.ModelForm[Any]]) -> list[str]:
    """The names of the fields that `form_for` has made."""
    return [name for name in form.base_fields if name.startswith(PREFIX) or name == MARK]


def initial_of(task: Any, args: str, kwargs: str) -> dict[str, Any] | None:
    """What the fields show of a schedule's arguments; None for what they could not show, as a name too many."""
    model = arguments.model_of(task)
    try:
        given = arguments.by_name(task, json.loads(args or "[]"), json.loads(kwargs or "{}"))
    except (TypeError, ValueError, RecursionError):
        return None
    if model is None or given.keys() - model.model_fields.keys():
        return None
    return {f"{PREFIX}{name}": value for name, value in given.items()}


def read(form: forms.Form, model: type[BaseModel]) -> dict[str, Any]:
    """The keyword arguments that were filled in. What does not fit is told beside its field."""
    filled = {name: form.cleaned_data.get(f"{PREFIX}{name}") for name in model.model_fields}
    given = {
        name: value
        for name, value in filled.items()
        if value not in EMPTY and value != form.fields[f"{PREFIX}{name}"].initial
    }
    if form.errors:
        return given
    try:
        model.model_validate(given)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            form.add_error(
                f"{PREFIX}{each['loc'][0]}" if each["loc"] else None, each["msg"].removeprefix("Value error, ")
            )
    return given


def _resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """The schema of one argument without references, and without the choice of being null."""
    if found := schema.get("$ref"):
        schema = {**whole["$defs"][found.rpartition("/")[2]], **schema}
    kinds = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    return {**_resolved(kinds[0], whole), **schema} if len(kinds) == 1 else schema


def _field(schema: dict[str, Any], *, required: bool) -> forms.Field:
    default = schema.get("default")
    options = {
        "label": schema.get("title", ""),
        "help_text": schema.get("description", ""),
        "initial": default,
        "required": required,
    }
    if choices := schema.get("enum"):
        by_text = {str(each): each for each in choices}
        nothing = [] if required or default is not None else [("", "–")]
        offered = [*nothing, *((text, text) for text in by_text)]
        return forms.TypedChoiceField(choices=offered, coerce=by_text.__getitem__, **options)
    kind = "lines" if _is_list_of_texts(schema) else str(schema.get("format") or schema.get("type"))
    return FIELDS.get(kind, FIELDS.get(str(schema.get("type")), _json))(schema, options)


def _is_list_of_texts(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "array" and schema.get("items", {}).get("type") == "string"


def _integer(schema: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return forms.IntegerField(min_value=schema.get("minimum"), max_value=schema.get("maximum"), **options)


def _number(schema: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return forms.FloatField(min_value=schema.get("minimum"), max_value=schema.get("maximum"), **options)


def _text(schema: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return forms.CharField(max_length=schema.get("maxLength"), widget=forms.TextInput(attrs={"size": 80}), **options)


def _long_text(_: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return forms.CharField(strip=False, widget=forms.Textarea(attrs={"rows": 6}), **options)


def _boolean(_: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return forms.BooleanField(**{**options, "required": False})


def _lines(_: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return LinesField(**{**options, "help_text": f"{options['help_text']} One on each line.".strip()})


def _json(_: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    widget = forms.Textarea(attrs={"rows": 4})
    return forms.JSONField(
        decoder=Decoder, **{**options, "help_text": f"{options['help_text']} JSON.".strip()}, widget=widget
    )


# By type, or by a format that the job gives: `Field(json_schema_extra={"format": "multi-line"})`.
FIELDS: dict[str, Callable[[dict[str, Any], dict[str, Any]], forms.Field]] = {
    "integer": _integer,
    "number": _number,
    "string": _text,
    "multi-line": _long_text,
    "boolean": _boolean,
    "lines": _lines,
}
