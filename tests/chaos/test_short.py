"""A short version of `make chaos` for every test run: faults of every kind for a few seconds."""

import pytest

from tests.chaos.test_storms import nemesis

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_is_right_after_a_short_storm(storm):
    nemesis(storm, seed=4, seconds=8)


def test_it_is_right_after_a_short_storm_behind_a_pooler(storm, pooled):
    storm.processes.environment |= pooled
    nemesis(storm, seed=4, seconds=8)
