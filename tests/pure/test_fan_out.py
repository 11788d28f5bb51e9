"""The work of the fan-out, and how many steps one run may have."""

import pytest

from jobs.tasks.fan_out import check, fan_out, is_valid


@pytest.mark.parametrize(
    ("number", "valid"), [(0, True), (18, True), (19, False), (79927398713, True), (79927398710, False)]
)
def test_it_knows_numbers_with_the_right_check_digit(number, valid):
    assert is_valid(number) is valid


def test_it_finds_one_valid_number_in_ten():
    assert [check(0, 1_000), check(990, 1_010)] == [100, 2]


@pytest.mark.parametrize(("items", "chunk"), [(100_000, 9), (1_000_000, 99)])
def test_it_refuses_more_steps_than_a_run_may_have(items, chunk):
    with pytest.raises(
        ValueError, match=r"needs [\d,]+ steps, but a run may have 10,000 at most: choose a chunk over \d+"
    ):
        fan_out(items, chunk)
