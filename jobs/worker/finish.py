"""How does an execution end? It succeeds, fails, is retried, or leaves its run to the steps that it has sent.

Its one rule: an end names its attempt, and the ledger takes only the first end of an attempt. A later end changes
nothing; if the attempt was lost, it is marked as fenced.
"""

from collections.abc import Callable
from datetime import timedelta
from traceback import format_exception
from typing import Any

from jobs.ledger import outcomes, steps
from jobs.messages.message import as_json
from jobs.models import LONGEST_ERROR_TEXT, LONGEST_NAME, LONGEST_REASON, Attempt, Run, State, Step
from jobs.rules.policies import LONGEST_COUNTDOWN
from jobs.secrets import in_one_line, storable, tail
from jobs.worker.context import Execution

UNDONE = "its replacement was rolled back with the transaction"


def finish(execution: Execution, state: State, reason: str = "") -> None:
    """End a run or step whose body is over and did not fail. A run with unfinished steps waits for them."""
    execution.write_log()
    execution.is_over = True
    if execution.unpublished:
        steps.fail_unsent(execution.unpublished, execution.run_id)
        if execution.replaces_itself:
            _fail(execution, UNDONE, {"error_class": "Undone", "error_text": UNDONE})
            return
    if execution.step is not None:
        execution.write_news()
        _end_step(execution, execution.step, state, reason)
    elif execution.has_steps:
        steps.carry(execution.run_id, execution.attempt, **execution.progress)
    else:
        changes = execution.progress | ({"reason": reason} if reason else {})
        outcomes.finish(execution.run_id, execution.attempt, state, **changes)
        return
    outcomes.settle(execution.run_id, execution.attempt)


def _end_step(execution: Execution, step: str, state: State, reason: str) -> None:
    if execution.sent_again:
        return
    if state == State.SUCCEEDED:
        steps.end(step, execution.run_id, execution.attempt, Step.State.SUCCEEDED)
    else:
        steps.end(step, execution.run_id, execution.attempt, Step.State.FAILED, error_text=reason)


def fail(execution: Execution, exception: BaseException, text: str) -> None:
    """End a run or step whose body raised an exception; `text` is the traceback."""
    execution.write_news()
    execution.is_over = True
    _fail(execution, in_one_line(exception, LONGEST_REASON), _described(exception, text))


def _fail(execution: Execution, reason: str, error: dict[str, str]) -> None:
    if execution.step is not None:
        steps.end(execution.step, execution.run_id, execution.attempt, Step.State.FAILED, **error)
        outcomes.settle(execution.run_id, execution.attempt)
    elif steps.cancel(execution.run_id, execution.attempt):  # it has steps, and waits for the running ones
        steps.carry(execution.run_id, execution.attempt, reason=reason, **error)
        outcomes.settle(execution.run_id, execution.attempt)
    else:
        outcomes.fail(execution.run_id, execution.attempt, reason, error)


def give_up(execution: Execution, error: Exception, own: BaseException | None) -> None:
    """End a run or step whose end, or whose retry after the error `own`, could not be recorded because of `error`."""
    execution.mute()  # one of its lines may be the reason
    execution.is_over = True
    why = in_one_line(error, LONGEST_REASON)
    if own is None:
        _fail(execution, why, _described(error, "".join(format_exception(error))))
        return
    reason = f"{in_one_line(own, LONGEST_REASON // 2)} (no retry: {why})"[:LONGEST_REASON]
    text = "".join(format_exception(own)) + "\nThe retry failed:\n" + "".join(format_exception(error))
    _fail(execution, reason, _described(own, text))


def retry(execution: Execution, args: Any, kwargs: Any, delay: timedelta, options: dict[str, Any]) -> None:
    """Carry out the task's `self.retry()` as the next attempt of its run. Raises `Invalid` for its arguments."""
    args, kwargs = as_json(args), as_json(kwargs)
    execution.write_news()
    execution.is_over = True
    run = Run.objects.get(id=execution.run_id)
    run.attempt = execution.attempt
    delay = min(delay, LONGEST_COUNTDOWN)
    reason = f"the task asked for a retry in {delay.total_seconds():.0f} s"
    kept = {name: options[name] for name in ("retries", "time_limit", "soft_time_limit") if options.get(name)}
    changes = {"args": args, "kwargs": kwargs, "options": run.options | kept}
    changes |= {name: options[name] for name in ("queue", "priority") if isinstance(options.get(name), (str, int))}
    if run.return_to_waiting(Attempt.Outcome.RETRIED, delay, reason=reason, **changes):
        return
    if not outcomes.finish_cancelled(run):
        Attempt.fence(execution.run_id, execution.attempt)


def send_again(execution: Execution, publish: Callable[[], Any]) -> None:
    """Carry out the `self.retry()` of a step by publishing it again. Raises what publishing raises."""
    execution.write_log()
    publish()


def _described(exception: BaseException, text: str) -> dict[str, str]:
    kind = storable(type(exception).__name__)[:LONGEST_NAME]
    return {"error_class": kind, "error_text": tail(text, LONGEST_ERROR_TEXT)}
