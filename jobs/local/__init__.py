"""How does all of it run on one machine?

`manage.py up` starts and supervises the web process, a worker, beat and a Valkey server.
"""
