# The README's commands. Each does all the set-up it needs: Python 3.11 or newer and a package registry are enough.
#
#   make run [ARGS="--port 8001"]    everything on this machine, with demonstration schedules, until Ctrl-C
#   make test                        every test, on PostgreSQL and on SQLite
#   make lint                        format, rules, types, migrations, Django's checks on production settings
#   make bench [ARGS=--quick]        beat beside django-celery-beat's own scheduler: half an hour on an idle machine
#   make chaos                       faults of every kind on real processes: ten minutes
#   make lock [ARGS=--upgrade]       both lists of locked requirements, from their .in files
#   make install                     .venv alone; PYTHON=/path/to/python3.12 chooses what it is made of
PYTHON ?= python3
BIN := .venv/bin
WRITABLE := test -w . || { echo "This folder cannot be written: put the project into one that can." >&2; exit 1; }
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"

.PHONY: run test lint bench chaos lock install
.NOTPARALLEL:

# With no settings at all, in `.env` or in the environment, this is somebody's first try: then DEBUG is switched on.
run: .venv/runs
	@test -e .env || test -n "$${DEBUG+set}$${DATABASE_URL+set}" || { $(WRITABLE); echo DEBUG=true > .env; }
	@exec $(BIN)/python manage.py up --demo $(ARGS)

test: .venv/develops
	$(BIN)/pytest -n 3 --dist worksteal
	$(BIN)/pytest -n 3 --dist worksteal --database sqlite tests/database

# Settings that are good for production, and whose values are good for nothing else.
lint: export ENV_FILE = /dev/null
lint: export DEBUG = false
lint: export SECRET_KEY = known-to-everybody-and-good-for-nothing-but-make-lint-0123456789
lint: export ALLOWED_HOSTS = example.org
lint: export DATABASE_URL = sqlite://:memory:
lint: export REDIS_URL = redis://localhost
lint: .venv/develops
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check --deploy --fail-level WARNING

bench: .venv/develops
	@$(BIN)/python -m benchmarks $(ARGS)

chaos: .venv/develops
	$(BIN)/pytest -n 2 --dist worksteal -m chaos tests/chaos $(ARGS)

lock: .venv/develops
	$(COMPILE) $(ARGS) requirements.in -o requirements.txt
	$(COMPILE) $(ARGS) requirements-dev.in -o requirements-dev.txt

install: .venv/runs

# A stamp says that all its requirements are installed; written last, it is missing after anything that went wrong.
.venv/runs: requirements.txt $(BIN)/python
.venv/develops: requirements-dev.txt $(BIN)/python
.venv/runs .venv/develops:
	@echo "Installing $<."
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip > /dev/null
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r $< \
	  || { echo "$< could not be installed, see above; once that is mended, run the same command again." >&2; exit 1; }
	@touch $@

# Made anew, too, when the Python it was made of is gone.
$(BIN)/python:
	@$(WRITABLE)
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2> /dev/null \
	  || { echo "Python 3.11 or newer is needed, but $(PYTHON) is" \
	            "$$("$(PYTHON)" --version 2> /dev/null || echo missing): name another with PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c "import ensurepip, venv" 2> /dev/null \
	  || { echo "$(PYTHON) lacks its venv module: install it (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@rm -rf .venv && "$(PYTHON)" -m venv .venv \
	  || { rm -rf .venv; echo ".venv could not be made, see above." >&2; exit 1; }
