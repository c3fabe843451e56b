PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-wheel check format bench services clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: .venv/run.stamp ## Run real flight data through FlowKit on SQLite, and kill a worker meanwhile
	$(BIN)/python -m examples.flights

test: .venv/dev.stamp services ## Run every test, with private services, then the fast ones against the built wheel
	$(BIN)/python -m pytest
	$(MAKE) --no-print-directory test-wheel

test-fast: .venv/dev.stamp ## Run the tests that need no services
	$(BIN)/python -m pytest -m "not postgresql and not processes and not slow" -n 2

test-wheel: .venv/dev.stamp ## Run the fast tests against the built wheel instead of the source tree
	PYTHON="$(PYTHON)" tests/wheel

check: .venv/dev.stamp ## Lint, formatting, strict types, and which floor may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.stamp ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev.stamp services ## Measure the reliable work beside naive loops, into benchmarks/results
	$(BIN)/python -m benchmarks

services: ## Install the servers that the tests start privately
	@tests/services/install

clean: ## Remove what the targets made
	rm -rf .venv .venv-wheel dist build .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/run.stamp: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@
