"""How does an attempt of a run end? It succeeds, fails, is tried again, or waits for its steps.

Its one rule: whoever ends an attempt names it, and an attempt that is over is not ended twice: the ledger takes the
first end and notes the others as fenced.
"""

from functools import partial
from traceback import format_exception_only
from uuid import UUID

from jobs.ledger import steps
from jobs.models import LONGEST_ERROR_TEXT, LONGEST_NAME, Attempt, Policy, Run, State, Step
from jobs.rules import policies
from jobs.secrets import head, storable, tail
from jobs.worker import pulse

LONGEST_REASON = 500  # characters of an error in the sentence of its run; the whole of it stands beside
UNDONE = "what was to take its place was undone with its transaction"


def finish(held: pulse.Held, state: State, reason: str = "") -> None:
    """The body of a run or step is over, and it did not fail. A run whose steps are not over waits for them."""
    pulse.write_log(held)
    if held.uncommitted:
        steps.give_up_unsent(held)
        if held.replacing:
            _fail(held, UNDONE, {"error_class": "Undone", "error_text": UNDONE})
            return
    if held.is_step:
        pulse.write_news(held)
        if not held.replaced:
            how = Step.State.SUCCEEDED if state == State.SUCCEEDED else Step.State.FAILED
            steps.end(held.task_id, held.attempt, how, **({"error_text": reason} if how == Step.State.FAILED else {}))
    elif held.has_steps:
        steps.hand_over(held, **held.progress)
    else:
        changes = held.progress | ({"reason": reason} if reason else {})
        Run.objects.finish(held.run_id, held.attempt, state, **changes)
        return
    settle(held.run_id, held.attempt)


def fail(held: pulse.Held, exception: BaseException, text: str) -> None:
    """The body of a run or step raised."""
    pulse.write_news(held)
    _fail(held, _sentence(exception), _described(exception, text))


def _fail(held: pulse.Held, reason: str, error: dict[str, str]) -> None:
    if held.is_step:
        steps.end(held.task_id, held.attempt, Step.State.FAILED, **error)
        settle(held.run_id, held.attempt)
    elif steps.cancel(held.run_id, held.attempt):  # it has steps, and waits for those that are at work
        steps.hand_over(held, reason=reason, **error)
        settle(held.run_id, held.attempt)
    else:
        fail_run(held.run_id, held.attempt, reason, error)


def fail_run(run_id: UUID, attempt: int, reason: str, error: dict[str, str]) -> None:
    """Record a failed attempt: another one follows while the schedule's policy has some left, else the run failed."""
    run = Run.objects.select_related("schedule__policy").get(id=run_id)
    run.attempt = attempt
    policy = Policy.of(run)
    delay = policies.retry_delay(attempt, policy.max_attempts, policy.retry_delay)
    again = partial(run.return_to_waiting, Run.objects.all(), Attempt.Outcome.FAILED)
    if delay is not None and again(delay, reason=reason, **error):
        return
    run.refresh_from_db(fields=["cancel_reason"])
    if run.cancel_reason:
        Run.objects.finish(run_id, attempt, State.CANCELLED, reason=run.cancel_reason, **error)
    elif Run.objects.finish(run_id, attempt, State.FAILED, reason=reason, **error):
        Policy.objects.filter(pk=run.schedule_id).pause_if_failing()


def settle(run_id: UUID, attempt: int) -> None:
    """End a run whose body is over, if its last step is over, too."""
    if not steps.is_over(run_id, attempt):
        return
    run = Run.objects.get(id=run_id)
    run.attempt = attempt
    state, reason, step = steps.outcome(run)
    if state == State.FAILED:
        failed = step or run
        error = {"error_class": failed.error_class, "error_text": failed.error_text}
        fail_run(run_id, attempt, reason[:LONGEST_REASON], error)
    else:
        Run.objects.finish(run_id, attempt, state, reason=reason)


def _described(exception: BaseException, text: str) -> dict[str, str]:
    kind = storable(type(exception).__name__)[:LONGEST_NAME]
    return {"error_class": kind, "error_text": tail(text, LONGEST_ERROR_TEXT)}


def _sentence(exception: BaseException) -> str:
    return head(format_exception_only(exception)[-1].strip(), LONGEST_REASON)
