"""How does all of it run on one machine?

`manage.py up` starts and supervises web, worker, beat and a Valkey server.
"""
