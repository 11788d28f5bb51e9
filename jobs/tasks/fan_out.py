"""How many small things fit into one run? Checks 100,000 numbers, a hundred in each step, and adds up the results.

It shows chunking: a message, three writes to the ledger and a result cost more than checking one number. So each step
checks many. `make bench ARGS="--only fan_out"` measures the saving. Replace `is_valid` to measure your own work. The
steps are a chord, which collects their results.

Limits: a step that dies ends the attempt. The next attempt starts from the beginning: chunks are no checkpoints.
"""

import logging
from typing import Annotated

from celery import Task, chord, shared_task
from pydantic import Field, validate_call

MOST_STEPS = 10_000

logger = logging.getLogger(__name__)


@shared_task(name="jobs.fan_out")
@validate_call
def fan_out(
    items: Annotated[int, Field(ge=1, le=1_000_000, description="How many numbers to check, from 0 on.")] = 100_000,
    chunk: Annotated[int, Field(ge=1, le=1_000_000, description="How many numbers each step checks.")] = 100,
) -> None:
    """Start the steps. Raises ValueError if there would be more than MOST_STEPS."""
    starts = range(0, items, chunk)
    if len(starts) > MOST_STEPS:
        raise ValueError(
            f"This needs {len(starts):,} steps, but a run may have {MOST_STEPS:,} at most: choose a chunk over {chunk}."
        )
    chord([check.s(start, min(start + chunk, items)) for start in starts], total.s(items)).delay()


@shared_task(name="jobs.fan_out.check", base=Task, step_of="jobs.fan_out")
def check(start: int, stop: int) -> int:
    """Count the valid numbers in this range."""
    return sum(map(is_valid, range(start, stop)))


@shared_task(name="jobs.fan_out.total", ignore_result=False, base=Task, step_of="jobs.fan_out")
def total(found: list[int], items: int) -> int:
    """Add up the results of the steps."""
    logger.info("%s of %s numbers have the right check digit.", f"{sum(found):,}", f"{items:,}")
    return sum(found)


def is_valid(number: int) -> bool:
    """Whether the last digit is the right check digit by Luhn's rule, as on bank cards: true of one number in ten."""
    digits = [int(digit) for digit in reversed(str(number))]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0
