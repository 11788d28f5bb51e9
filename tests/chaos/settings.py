"""The tests' settings, for processes that can be sabotaged: see `tests.chaos.sabotage`."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.chaos.sabotage.Sabotage"]
