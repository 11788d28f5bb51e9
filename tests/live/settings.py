"""The tests' settings, and one more database: another name for the same one, kept for a minute like the first."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

DATABASES["second"] = {**DATABASES["default"]}
