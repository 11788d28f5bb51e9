"""The options of gunicorn besides those of its command line. It reads this file from the folder where it starts."""

worker_class = "project.server.Worker"
logger_class = "project.server.AccessLogger"
workers, threads = 2, 8
keepalive = 10  # seconds in which a connection must send its first or next request; it holds no thread meanwhile
control_socket_disable = True
limit_request_fields, limit_request_field_size, limit_request_line = 60, 8190, 8190
