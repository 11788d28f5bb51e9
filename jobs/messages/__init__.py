"""What is Celery given? A schedule becomes a message, a run's message is published. Only `dispatch` publishes runs."""
