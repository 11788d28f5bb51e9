"""What does a tick do?

It claims due moments, sends runs, releases those that wait and rescues those whose process died.
"""

from jobs.beat.scheduler import Scheduler

__all__ = ["Scheduler"]
