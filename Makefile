# The README's commands. Each one sets up everything it needs, given Python 3.11 or newer and a package registry.
#
#   make run [ARGS="--port 8001"]    run everything on this machine, with demonstration schedules, until Ctrl-C
#   make test                        run all tests, on PostgreSQL and on SQLite
#   make lint                        check format, rules, types, migrations, and Django's checks for production
#   make bench [ARGS=--quick]        compare with django-celery-beat's scheduler: half an hour on an idle machine
#   make chaos                       cause faults of every kind in real processes: ten minutes
#   make fuzz                        send random requests to the API, as every role: ten minutes
#   make audit                       check hashes, licences and known vulnerabilities; write the SBOM to var/sbom.json
#   make lock [ARGS=--upgrade]       renew the lists of locked requirements from their .in files
#   make install [EXTRAS=sentry]     create only .venv, with the named lists of extras/, separated by commas
#
# PYTHON=/path/to/python3.12 chooses the Python of a new .venv.
PYTHON ?= python3
BIN := .venv/bin
WRITABLE := test -w . || { echo "This folder cannot be written: move the project to a writable folder." >&2; exit 1; }
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"

.PHONY: run test lint bench chaos fuzz audit lock install
.NOTPARALLEL:

# Without any settings in `.env` or in the environment, this is a first try: write DEBUG=true to `.env`.
run: .venv/runs
	@test -e .env || test -n "$${DEBUG+set}$${DATABASE_URL+set}" || { $(WRITABLE); echo DEBUG=true > .env; }
	@exec $(BIN)/python manage.py up --demo $(ARGS)

test: .venv/develops
	$(BIN)/pytest -n 3 --dist worksteal
	$(BIN)/pytest -n 3 --dist worksteal --database sqlite tests/database

# Settings of a production site, with values that are useless outside of this check.
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

fuzz: .venv/develops
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-200} $(BIN)/pytest -n 2 --dist worksteal tests/database/test_fuzz.py $(ARGS)

# The tools are in a separate environment, so that they do not audit themselves. If the package index does not offer known
# vulnerabilities, one line says so. A look-up that fails, fails the audit.
audit: .venv/develops .venv-audit/audits
	$(BIN)/pytest -q tests/pure/test_supply.py
	@mkdir -p var
	.venv-audit/bin/cyclonedx-py requirements requirements.txt --output-reproducible --of JSON -o var/sbom.json
	@rm -f var/vulnerabilities.json
	@status=0; .venv-audit/bin/pip-audit --disable-pip --require-hashes -r requirements.txt --progress-spinner off \
	  --timeout 30 --format json --output var/vulnerabilities.json 2> var/audit.log || status=1; \
	if grep -qs '"skip_reason"' var/vulnerabilities.json && ! grep -q '"vulns"' var/vulnerabilities.json; then \
	  echo "Known vulnerabilities were not checked: this package index does not offer them."; \
	elif test $$status = 1 || ! grep -qs '"vulns"' var/vulnerabilities.json; then \
	  cat var/audit.log var/vulnerabilities.json >&2; echo "The audit failed (see above)." >&2; exit 1; \
	fi

lock: .venv/develops
	$(COMPILE) $(ARGS) requirements.in -o requirements.txt
	$(COMPILE) $(ARGS) requirements-dev.in -o requirements-dev.txt
	$(COMPILE) $(ARGS) extras/sentry.in -o extras/sentry.txt
	$(COMPILE) $(ARGS) extras/opentelemetry.in -o extras/opentelemetry.txt
	$(COMPILE) $(ARGS) requirements-audit.in -o requirements-audit.txt

install: .venv/runs
	@for extra in $$(echo "$(EXTRAS)" | tr , " "); do \
	  test -f "extras/$$extra.txt" || { echo "There is no extra $$extra: choose from" extras/*.txt >&2; exit 1; }; \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r "extras/$$extra.txt" || exit 1; \
	done

# A stamp means that all its requirements are installed. It is written last, so a failed installation leaves none.
.venv/runs: requirements.txt $(BIN)/python
.venv/develops: requirements-dev.txt $(BIN)/python
.venv/runs .venv/develops:
	@echo "Installing $<."
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip > /dev/null
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r $< \
	  || { echo "Installing $< failed (see above). Fix the cause, then run the same command again." >&2; exit 1; }
	@touch $@

.venv-audit/audits: requirements-audit.txt $(BIN)/python
	@echo "Installing $<."
	@rm -rf .venv-audit && $(BIN)/python -m venv .venv-audit
	@.venv-audit/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r $< \
	  || { echo "Installing $< failed (see above). Fix the cause, then run the same command again." >&2; exit 1; }
	@touch $@

# Also creates .venv again if its Python is gone.
$(BIN)/python:
	@$(WRITABLE)
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2> /dev/null \
	  || { echo "Python 3.11 or newer is needed, but $(PYTHON) is" \
	            "$$("$(PYTHON)" --version 2> /dev/null || echo missing): choose another with PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c "import ensurepip, venv" 2> /dev/null \
	  || { echo "$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@rm -rf .venv && "$(PYTHON)" -m venv .venv \
	  || { rm -rf .venv; echo "Creating .venv failed (see above)." >&2; exit 1; }
