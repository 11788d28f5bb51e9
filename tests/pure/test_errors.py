"""An exit is found behind every error that may have taken its place."""

import pytest

from jobs.rules.errors import hidden


def raised_after() -> None:
    try:
        raise SystemExit(7)
    finally:
        raise ValueError("the rollback failed")


def raised_from() -> None:
    raise ValueError("wrapped") from SystemExit(7)


def raised_from_another_error() -> None:
    try:
        raise SystemExit(7)
    finally:
        raise ValueError("the rollback failed") from OSError("gone")


@pytest.mark.parametrize("failing", [raised_after, raised_from, raised_from_another_error])
def test_it_finds_an_exit_behind_an_error(failing):
    with pytest.raises(ValueError, match=r"rollback failed|wrapped") as caught:
        failing()
    found = hidden(caught.value, SystemExit, KeyboardInterrupt)
    assert isinstance(found, SystemExit)
    assert found.code == 7


def test_it_finds_no_exit_where_there_was_none():
    assert hidden(ValueError(), SystemExit) is None
    assert hidden(None, SystemExit) is None
