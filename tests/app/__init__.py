"""An app like a user's: it only has a `tasks.py`."""
