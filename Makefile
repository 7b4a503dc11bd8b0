# The commands of a checkout. `make quickstart` and `make test` need nothing but Python 3.11.
SHELL := bash
PYTHON ?= $(shell for each in python3.11 python3; do $$each -c '' 2>/dev/null && echo $$each && break; done)
EXTRA ?= cpu
BIN := .venv/bin

.PHONY: help bootstrap quickstart test lint bench chaos constraints
help:            ## show these lines
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

bootstrap:       ## make .venv, or bring it up to date (EXTRA=gpu for CUDA)
	@$(PYTHON) deploy/bootstrap.py $(EXTRA)

quickstart: bootstrap  ## walk the whole road on this machine and write a report
	@$(BIN)/headrace pipeline jobs/recipes/pipeline_smoke.yaml

lint: bootstrap  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint       ## lint, then every test that needs no GPU
	@$(BIN)/pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder --durations 40

bench: bootstrap ## benchmarks; each writes its JSON to tests/benchmarks/results
	@$(BIN)/python -m tests.benchmarks

constraints: bootstrap  ## pin what is installed in .venv now
	@$(BIN)/pip freeze --all --exclude-editable | sed 's/_/-/' | grep -v -i -F -f <(sed '/^#/d' deploy/samples.txt deploy/verifiers.txt) \
	  | grep -v '^pip==' > deploy/constraints.txt

chaos: bootstrap ## kill drivers and workers at 20 random moments
	@HEADRACE_CHAOS_KILLS=20 $(BIN)/pytest -s tests/chaos tests/sieve/test_sieve_chaos.py
