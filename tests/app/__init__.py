"""A user's app: all it has is a `tasks.py`."""
