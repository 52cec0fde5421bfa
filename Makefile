# The Python that makes .venv: make demo PYTHON=/path/to/python3.12
PYTHON ?= python3
RUN := .venv/bin/python -m

.DEFAULT_GOAL := help
.PHONY: help setup demo up run down status logs test test-fast faults bench check contracts lock clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make .venv with everything that Backstop needs (the other targets do this by themselves)
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer, or run make PYTHON=/path/to/python3." >&2; exit 1; }
	@exec "$(PYTHON)" deploy/local/bootstrap.py

demo: setup ## Run the whole story on this machine: MAILS=<folder of .eml files>, REPORT=<file for the findings as JSON>
	@exec $(RUN) demo $(if $(MAILS),--mails "$(MAILS)") $(if $(REPORT),--report "$(REPORT)")

up: setup ## Start everything in the background, and print where it is: WITHOUT=<services that `make run` starts>
	@exec $(RUN) local_stack up --without "$(WITHOUT)"

run: ## Run one service of `make up WITHOUT=...` in the foreground, for a debugger: SERVICE=triage
	@exec $(RUN) local_stack run "$(SERVICE)"

down: ## Stop what `make up` started
	@if [ -x .venv/bin/python ]; then exec $(RUN) local_stack down; else echo "Nothing is up."; fi

status: setup ## Say which parts of `make up` are ready
	@exec $(RUN) local_stack status

logs: setup ## Show what the processes of `make up` wrote: NAME=<process>, FOLLOW=1
	@exec $(RUN) local_stack logs $(if $(FOLLOW),--follow) $(NAME)

test-fast: setup ## Run the tests that need neither Kafka nor PostgreSQL, in less than a minute: ARGS=<options of pytest>
	@# Compiled once, the tests are collected in half the time.
	@PYTHONDONTWRITEBYTECODE= exec $(RUN) pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test: setup ## Run all tests, with a real Kafka and a real PostgreSQL: ARGS=<options of pytest>
	@exec $(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: setup ## Break the running system for MINUTES=10, heal it and check every promise: SEED=<of an earlier run>
	@PYTHONPATH=tests exec $(RUN) faults $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

bench: setup ## Measure what Backstop costs, beside alternatives: QUICK=1 for less, ONLY=<name> for one measurement
	@exec $(RUN) bench $(if $(QUICK),--quick) $(ONLY)

check: setup ## Check style, types and the direction of imports
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy
	@.venv/bin/lint-imports

contracts: setup ## Write what is derived from the contracts: schemas, FIELDS.md, asyncapi.json, openapi.json (ARGS=--check)
	@PYTHONPATH=contracts exec $(RUN) generator $(ARGS)

lock: ## Choose exact versions anew from what the parts ask for: ARGS=--upgrade for the newest ones
	@[ -x .venv/bin/uv ] || exec "$(PYTHON)" deploy/local/bootstrap.py
	@mkdir -p .local
	@.venv/bin/python deploy/local/bootstrap.py requirements > .local/requirements.in
	@exec .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header -o requirements.lock $(ARGS) .local/requirements.in

clean: ## Stop what runs, and remove .venv and all data
	@if .venv/bin/python -c "import local_stack" 2>/dev/null; then $(RUN) local_stack down; fi
	@rm -rf .venv .local .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
