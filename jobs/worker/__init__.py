"""What happens while a run executes?

The task class, Celery's signals, and everything a process does for the runs it executes.
"""
