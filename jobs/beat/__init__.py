"""What does a tick do?

It claims due moments, sends runs, releases waiting runs and rescues runs whose process died.
"""

from jobs.beat.scheduler import Scheduler

__all__ = ["Scheduler"]
