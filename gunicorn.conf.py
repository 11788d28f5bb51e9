"""What gunicorn uses besides the options of its command line; it reads this file in the folder where it starts."""

worker_class = "project.server.Worker"
logger_class = "project.server.AccessLogger"
workers, threads = 2, 8
keepalive = 10  # seconds that a connection may wait for its first or next request; it holds no thread
control_socket_disable = True
limit_request_fields, limit_request_field_size, limit_request_line = 60, 8190, 8190
