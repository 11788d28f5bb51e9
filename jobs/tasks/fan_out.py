"""How many small things fit into one run? Checks 100,000 numbers, a hundred in each step, and adds up what was found.

It teaches chunking: a message, three writes to the ledger and a result cost more than the check of a number, so a step
takes many of them. How much that saves, `make bench ARGS="--only fan_out"` measures; put your own work in the place of
`is_valid` to see it on that. The steps are a chord, which collects what they return.

Limits: a step that dies takes the run with it, and its next attempt begins anew: chunks are no checkpoints.
"""

import logging
from typing import Annotated

from celery import chord, shared_task
from pydantic import Field, validate_call

MOST_STEPS = 10_000

logger = logging.getLogger(__name__)


@shared_task(name="jobs.fan_out")
@validate_call
def fan_out(
    items: Annotated[int, Field(ge=1, le=1_000_000, description="How many numbers, from 0 on.")] = 100_000,
    chunk: Annotated[int, Field(ge=1, le=1_000_000, description="How many of them in each step.")] = 100,
) -> None:
    """Set off the steps. Raises ValueError when they would be more than MOST_STEPS."""
    starts = range(0, items, chunk)
    if len(starts) > MOST_STEPS:
        raise ValueError(
            f"These would be {len(starts):,} steps: give each more than {chunk}, for {MOST_STEPS:,} at most."
        )
    chord([check.s(start, min(start + chunk, items)) for start in starts], total.s(items)).delay()


@shared_task(name="jobs.fan_out.check")
def check(start: int, stop: int) -> int:
    """How many of these numbers are valid."""
    return sum(map(is_valid, range(start, stop)))


@shared_task(name="jobs.fan_out.total", ignore_result=False)
def total(found: list[int], items: int) -> int:
    """Add up what the steps have found."""
    logger.info("%s of %s numbers have the right check digit.", f"{sum(found):,}", f"{items:,}")
    return sum(found)


def is_valid(number: int) -> bool:
    """Whether its last digit checks the others, by Luhn's rule, as on bank cards: true of one number in ten."""
    digits = [int(digit) for digit in reversed(str(number))]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0
