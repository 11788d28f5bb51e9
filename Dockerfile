# One image for web, worker, beat and all management commands; docker-compose.yml sets the command of each.
FROM python:3.13-slim-trixie

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VAR_DIR=/app/var

WORKDIR /app
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin punctual \
    && install --directory --owner=punctual --mode=700 /app/files
# pg_dump and pg_restore for `jobs.backup_database`, in the version of the server.
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-client-17 && rm -rf /var/lib/apt/lists/*

COPY requirements.txt ./
RUN pip install --no-cache-dir --no-compile --require-hashes -r requirements.txt

COPY manage.py gunicorn.conf.py LICENSE ./
COPY project ./project
COPY jobs ./jobs
COPY templates ./templates

# Placeholder settings: collectstatic uses neither a database nor a broker, and stores no key.
RUN SECRET_KEY=thrown-away ALLOWED_HOSTS=localhost DATABASE_URL=postgres://localhost/none REDIS_URL=redis://localhost \
    python manage.py collectstatic --noinput

USER punctual
EXPOSE 8000
CMD ["gunicorn", "project.wsgi", "--bind=0.0.0.0:8000", "--worker-tmp-dir=/dev/shm", "--access-logfile=-"]
