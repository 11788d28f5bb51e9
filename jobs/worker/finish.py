"""How does an attempt of a run end in its worker? It succeeds, fails, is tried again, or waits for its steps.

Its one rule: an end names its attempt, and an attempt that is over does not end twice: the ledger takes the first end
and notes the others as fenced.
"""

from traceback import format_exception_only

from jobs.ledger import outcomes, steps
from jobs.ledger.outcomes import LONGEST_REASON
from jobs.models import LONGEST_ERROR_TEXT, LONGEST_NAME, State, Step
from jobs.secrets import head, storable, tail
from jobs.worker import pulse

UNDONE = "its replacement was rolled back with the transaction"


def finish(held: pulse.Held, state: State, reason: str = "") -> None:
    """The body of a run or step is over, and it did not fail. A run whose steps are not over waits for them."""
    pulse.write_log(held)
    if held.uncommitted:
        steps.fail_unsent(held.uncommitted, held.run_id)
        if held.replacing:
            _fail(held, UNDONE, {"error_class": "Undone", "error_text": UNDONE})
            return
    if held.is_step:
        pulse.write_news(held)
        _end_step(held, state, reason)
    elif held.has_steps:
        steps.carry(held.run_id, held.attempt, **held.progress)
    else:
        changes = held.progress | ({"reason": reason} if reason else {})
        outcomes.finish(held.run_id, held.attempt, state, **changes)
        return
    outcomes.settle(held.run_id, held.attempt)


def _end_step(held: pulse.Held, state: State, reason: str) -> None:
    if held.replaced:
        return
    if state == State.SUCCEEDED:
        steps.end(held.task_id, held.attempt, Step.State.SUCCEEDED)
    else:
        steps.end(held.task_id, held.attempt, Step.State.FAILED, error_text=reason)


def fail(held: pulse.Held, exception: BaseException, text: str) -> None:
    """The body of a run or step raised."""
    pulse.write_news(held)
    _fail(held, _sentence(exception), _described(exception, text))


def _fail(held: pulse.Held, reason: str, error: dict[str, str]) -> None:
    if held.is_step:
        steps.end(held.task_id, held.attempt, Step.State.FAILED, **error)
        outcomes.settle(held.run_id, held.attempt)
    elif steps.cancel(held.run_id, held.attempt):  # it has steps, and waits for those that are at work
        steps.carry(held.run_id, held.attempt, reason=reason, **error)
        outcomes.settle(held.run_id, held.attempt)
    else:
        outcomes.fail(held.run_id, held.attempt, reason, error)


def _described(exception: BaseException, text: str) -> dict[str, str]:
    kind = storable(type(exception).__name__)[:LONGEST_NAME]
    return {"error_class": kind, "error_text": tail(text, LONGEST_ERROR_TEXT)}


def _sentence(exception: BaseException) -> str:
    return head(format_exception_only(exception)[-1].strip(), LONGEST_REASON)
