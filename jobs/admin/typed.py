"""Which fields does the page of a schedule have for the arguments of its job? One for each, if the job is typed.

Its one rule: an unedited argument stays as stored. Without a stored value it follows the job's default. If fields
cannot show the stored arguments (unknown names, items with line breaks), the page takes JSON.
"""

from collections.abc import Callable
from typing import Any

from django import forms
from pydantic import BaseModel, ValidationError

from jobs.messages import arguments, message
from jobs.rules.errors import Invalid

PREFIX = "argument_"
MARK = "arguments_of"  # the hidden field with the name of the job that the page was made for


class TextField(forms.CharField):
    """A text of several lines. The line breaks of browsers become those of Unix."""

    widget = forms.Textarea(attrs={"rows": 6})

    def to_python(self, value: Any) -> Any:
        return str(super().to_python(value)).replace("\r\n", "\n")


class LinesField(forms.CharField):
    """A list of texts, one per line."""

    widget = forms.Textarea(attrs={"rows": 4})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(self.to_python(data) != (initial or []))


def form_for(base: type[forms.ModelForm[Any]], task: Any) -> type[forms.ModelForm[Any]]:
    """The form of a schedule with a field for each argument of a typed task."""
    model = arguments.model_of(task)
    schema = model.model_json_schema(by_alias=False) if model else {}
    required = set(schema.get("required", ()))
    fields: dict[str, Any] = {
        f"{PREFIX}{name}": _field(_resolved(each, schema), required=name in required)
        for name, each in schema.get("properties", {}).items()
    }
    fields[MARK] = forms.CharField(widget=forms.HiddenInput, required=False, initial=task.name)
    return type(base.__name__, (base,), {"job": task, **fields})


def names(form: type[forms.ModelForm[Any]]) -> list[str]:
    """The names of the fields that `form_for` made."""
    return [name for name in form.base_fields if name.startswith(PREFIX) or name == MARK]


def stored_of(task: Any, args: str, kwargs: str) -> dict[str, Any] | None:
    """The arguments of a schedule, by name; None if the fields cannot show them unchanged."""
    model = arguments.model_of(task) if task else None
    if model is None:
        return None
    try:
        given = arguments.by_name(task, message.read(args, "", list), message.read(kwargs, "", dict))
    except (TypeError, Invalid):
        return None
    fits_lines = all(_fits_lines(value) for value in given.values() if isinstance(value, list))
    return given if fits_lines and given.keys() <= model.model_fields.keys() else None


def read(form: forms.Form, model: type[BaseModel], stored: dict[str, Any]) -> dict[str, Any]:
    """The edited arguments, and the unedited ones as `stored`. Adds each error to the form, beside its field."""
    given: dict[str, Any] = {}
    for name in model.model_fields:
        field, value = f"{PREFIX}{name}", form.cleaned_data.get(f"{PREFIX}{name}")
        if field not in form.changed_data:
            given |= {name: stored[name]} if name in stored else {}
        elif value is not None and value != form.fields[field].initial:
            given[name] = value
    if form.errors:
        return given
    try:
        model.model_validate(given)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            place = f"{PREFIX}{each['loc'][0]}" if each["loc"] else None
            form.add_error(place, each["msg"].removeprefix("Value error, "))
    return given


def _fits_lines(items: list[Any]) -> bool:
    return not any(isinstance(item, str) and (item.strip() != item or len(item.splitlines()) != 1) for item in items)


def _resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """The schema of one argument with its references resolved. A choice between it and null becomes `nullable`."""
    if found := schema.get("$ref"):
        schema = {**whole["$defs"][found.rpartition("/")[2]], **schema}
    kinds = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    return {**_resolved(kinds[0], whole), **schema, "nullable": True} if len(kinds) == 1 else schema


def _field(schema: dict[str, Any], *, required: bool) -> forms.Field:
    options = {
        "label": schema.get("title", ""),
        "help_text": schema.get("description", ""),
        "initial": schema.get("default"),
        "required": required,
    }
    if choices := schema.get("enum"):
        return _choice(choices, options)
    kind = "lines" if _is_list_of_texts(schema) else str(schema.get("format") or schema.get("type"))
    return FIELDS.get(kind, FIELDS.get(str(schema.get("type")), _json))(schema, options)


def _choice(choices: list[Any], options: dict[str, Any]) -> forms.Field:
    by_text = {str(each): each for each in choices}
    nothing = [] if options["required"] or options["initial"] is not None else [("", "–")]
    offered = [*nothing, *((text, text) for text in by_text)]
    return forms.TypedChoiceField(
        choices=offered, coerce=lambda chosen: by_text.get(str(chosen)), empty_value=None, **options
    )


def _is_list_of_texts(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "array" and schema.get("items", {}).get("type") == "string"


def _integer(schema: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return forms.IntegerField(min_value=schema.get("minimum"), max_value=schema.get("maximum"), **options)


def _number(schema: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return forms.FloatField(min_value=schema.get("minimum"), max_value=schema.get("maximum"), **options)


def _line(schema: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    widget = forms.TextInput(attrs={"size": 80})
    return forms.CharField(max_length=schema.get("maxLength"), strip=False, widget=widget, **options)


def _text(schema: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return TextField(max_length=schema.get("maxLength"), strip=False, **options)


def _boolean(schema: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    kind = forms.NullBooleanField if schema.get("nullable") else forms.BooleanField
    return kind(**{**options, "required": False})


def _lines(_: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    return LinesField(**{**options, "help_text": f"{options['help_text']} One per line.".strip()})


def _json(_: dict[str, Any], options: dict[str, Any]) -> forms.Field:
    options = {**options, "help_text": f"{options['help_text']} JSON.".strip()}
    return forms.JSONField(decoder=message.Decoder, widget=forms.Textarea(attrs={"rows": 4}), **options)


# By type, or by the format that the job sets: `Field(json_schema_extra={"format": "multi-line"})`.
FIELDS: dict[str, Callable[[dict[str, Any], dict[str, Any]], forms.Field]] = {
    "integer": _integer,
    "number": _number,
    "string": _line,
    "multi-line": _text,
    "boolean": _boolean,
    "lines": _lines,
}
