# The README's commands. Each does all the set-up it needs: Python 3.11 or newer and a package registry are enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint lock install
run: .venv/runs
	@$(BIN)/python manage.py up --demo $(ARGS)
