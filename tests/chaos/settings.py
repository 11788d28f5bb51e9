"""The tests' settings, in processes that may be made to fail: see `tests.chaos.sabotage`."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.chaos.sabotage.Sabotage"]
