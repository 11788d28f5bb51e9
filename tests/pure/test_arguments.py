"""The arguments of a job: read from its signature and, where it is typed, from its annotations."""

from typing import Annotated, Any, Literal

import pytest
from celery import Celery
from pydantic import Field, validate_call

from jobs.messages import arguments
from jobs.rules.errors import Invalid

app = Celery("arguments", set_as_current=False)


@app.task(name="typed")
@validate_call
def typed(
    month: Annotated[str, Field(pattern=r"^\d{4}-\d{2}$")], kind: Literal["a", "b"] = "a", copies: int = 1
) -> None:
    pass


@app.task(name="bound", bind=True)
@validate_call
def bound(self: Any, month: str) -> None:
    pass


@app.task(name="many")
@validate_call
def many(*months: str) -> None:
    pass


@app.task(name="plain")
def plain(month: str, copies: int = 1) -> None:
    pass


@app.task(name="loose", typing=False)
@validate_call
def loose(month: str) -> None:
    pass


@pytest.mark.parametrize(
    ("task", "args", "kwargs"),
    [
        (typed, ["2026-03"], {}),
        (typed, ["2026-03", "b"], {"copies": 3}),
        (typed, [], {"month": "2026-03", "copies": "3"}),
        (bound, ["2026-03"], {}),
        (bound, [], {"month": "2026-03"}),
        (many, [], {}),
        (plain, [5], {"copies": "many"}),
        (loose, [1, 2, 3], {}),
    ],
)
def test_it_accepts_arguments_that_fit(task: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    arguments.check(task, args, kwargs)


@pytest.mark.parametrize(
    ("task", "args", "kwargs", "sentence"),
    [
        (typed, [], {}, "missing a required argument: 'month'"),
        (typed, ["2026-03"], {"month": "2026-04"}, "multiple values for argument 'month'"),
        (typed, [], {"month": "2026-03", "colour": 1}, "unexpected keyword argument 'colour'"),
        (typed, ["2026-03", "a", 1, 2], {}, "too many positional arguments"),
        (typed, ["March"], {}, "month: String should match pattern"),
        (typed, ["2026-03"], {"kind": "c", "copies": "x"}, "kind: Input should be 'a' or 'b'; copies: Input should be"),
        (typed, [None], {}, "month: Input should be a valid string"),
        (bound, [], {}, "missing a required argument: 'month'"),
        (bound, ["a", "b"], {}, "too many positional arguments"),
        (plain, [], {}, "missing 1 required positional argument"),
    ],
)
def test_it_refuses_arguments_that_do_not_fit(
    task: Any, args: list[Any], kwargs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Invalid, match=f"^The arguments do not fit '{task.name}': .*{sentence}"):
        arguments.check(task, args, kwargs)


def test_it_leaves_values_out_of_its_sentence() -> None:
    with pytest.raises(Invalid) as refused:
        arguments.check(typed, ["hunter2"], {})
    assert "hunter2" not in str(refused.value)


def test_it_makes_fields_for_typed_jobs_only() -> None:
    assert list(arguments.model_of(typed).model_fields) == ["month", "kind", "copies"]
    assert list(arguments.model_of(bound).model_fields) == ["month"]
    assert [arguments.model_of(task) for task in (many, plain)] == [None, None]
