"""What is Celery given? A schedule becomes a message, a run's message is published; only `dispatch` publishes runs."""
