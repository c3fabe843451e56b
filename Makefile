PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FAST := -m "not postgresql and not rabbitmq and not processes and not slow" --numprocesses 3 --dist worksteal
# They wait as well as compute: three at a time keep two cores busy. Who dies is not run again and again.
SLOW := -m "postgresql or rabbitmq or processes or slow" --numprocesses 3 --dist loadgroup --max-worker-restart 0
# Every process that a test starts would compile FlowKit anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
SEEDS ?= 3000
FROM ?= 0
MINUTES ?= 5
SEED ?= 0
INPUTS ?= 50000
.PHONY: help demo demo-rabbitmq test test-slow test-fast test-wheel test-oldest sbom check surface format bench bench-quick bench-scale bench-peers bench-ingress attack availability
.PHONY: simulate chaos soak fuzz services proof clean
# In the order written, also with -j: two pips in one environment would break it.
.NOTPARALLEL:

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## see flows survive what breaks others, on SQLite
	$(BIN)/python -m examples.flights

demo-rabbitmq: $(VENV)/.dev services ## the same on a private RabbitMQ and PostgreSQL
	$(BIN)/python -m tests.services $(BIN)/python -m examples.flights

test: services test-wheel test-slow bench-quick ## run every test, and see whether FlowKit has become slower

test-slow: $(VENV)/.dev ## run the tests that need services, processes or time
	$(BIN)/python -m pytest $(SLOW)

test-fast: $(VENV)/.dev ## run the tests that need no services
	$(BIN)/python -m pytest $(FAST)

test-wheel: .venv-wheel/.test ## run the fast tests on the built wheel, away from the source tree
	@set -eu; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	.venv-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir "$$work" .; \
	.venv-wheel/bin/python -m pip install --quiet --no-deps --force-reinstall "$$work"/*.whl; \
	tar -c --exclude='./.*' --exclude=__pycache__ --exclude=./flowkit --exclude=./connectors . | tar -x -C "$$work"; \
	python="$$PWD/.venv-wheel/bin/python"; cd "$$work"; \
	"$$python" -c 'import flowkit; assert "site-packages" in flowkit.__file__, flowkit.__file__'; \
	"$$python" -m pytest $(FAST) --ignore tests/project

test-oldest: .venv-oldest/.made ## run the fast tests with the lowest versions of what FlowKit needs
	.venv-oldest/bin/python -m pytest $(FAST) -p no:anyio

sbom: .venv-sbom/.made ## write build/sbom.json: what an install with constraints.txt consists of (CycloneDX)
	mkdir -p build
	.venv-sbom/tool/bin/cyclonedx-py environment .venv-sbom/plain/bin/python --output-format JSON --output-file build/sbom.json

check: $(VENV)/.dev ## lint, formatting, types, imports, and the rules for code, language and documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet tests/project

surface: $(VENV)/.dev ## write tests/surface/surface.txt: what users rely on
	$(BIN)/python -m tests.surface write tests/surface/surface.txt

format: $(VENV)/.dev ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev services ## measure
	$(BIN)/python -m benchmarks

bench-scale: $(VENV)/.dev services ## measure what much of something costs
	$(BIN)/python -m benchmarks.scale

bench-quick: $(VENV)/.dev services ## see whether FlowKit has become slower
	$(BIN)/python -m benchmarks.quick

bench-ingress: $(VENV)/.dev services ## measure what one instance takes by HTTP
	$(BIN)/python -m benchmarks.ingress

availability: $(VENV)/.dev services ## measure what broken, replaced and other versions of instances cost clients
	$(BIN)/python -m benchmarks.availability
	$(BIN)/python -m benchmarks.availability_chart

attack: .venv-attack/.made services ## attack a worker as strangers would, and see what holds
	.venv-attack/bin/python -m benchmarks.attack

bench-peers: .venv-peers/.made services ## measure beside other projects
	.venv-peers/bin/python -m benchmarks.peers
	.venv-peers/bin/python -m benchmarks.peers.chart

simulate: $(VENV)/.dev ## run the engine under simulated faults: SEEDS=3000 FROM=0
	$(BIN)/python -m tests.simulation --from $(FROM) --seeds $(SEEDS)

chaos: $(VENV)/.dev services ## kill, freeze, cut and restart real processes: MINUTES=5 SEED=0
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) --seed $(SEED)

soak: $(VENV)/.dev services ## a steady load for a long time, with faults: MINUTES=5 SEED=0
	$(BIN)/python -m tests.chaos.soak sqlite --minutes $(MINUTES) --seed $(SEED)
	$(BIN)/python -m tests.chaos.soak rabbitmq --minutes $(MINUTES) --seed $(SEED)

fuzz: $(VENV)/.dev services ## put hostile inputs through every transport, and account for each: INPUTS=50000 SEED=0
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(SEED)

proof: $(VENV)/.dev services ## all of these with their full numbers, and docs/proof.md: PARTS=
	$(BIN)/python -m tests.proof $(PARTS)

services: ## install the servers that tests start for themselves
	tests/services/install

clean: ## remove all that was made here
	rm -rf .venv .venv-wheel .venv-oldest .venv-sbom .venv-peers .venv-attack build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The demo needs no test tools; what tests need is added to the same environment.
$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	touch $@

.venv-peers/.made: pyproject.toml benchmarks/peers/requirements.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt --editable '.[all]'
	touch $@

.venv-attack/.made: pyproject.toml benchmarks/attack/requirements.txt
	$(PYTHON) -m venv --clear .venv-attack
	.venv-attack/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-attack/bin/python -m pip install --quiet --requirement benchmarks/attack/requirements.txt --editable '.[all]'
	touch $@

.venv-oldest/.made: pyproject.toml oldest.txt
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-oldest/bin/python -m pip install --quiet --constraint oldest.txt --editable '.[all]' --group test
	touch $@

.venv-sbom/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-sbom/plain
	.venv-sbom/plain/bin/python -m pip install --quiet --constraint constraints.txt '.[postgresql]'
	$(PYTHON) -m venv --clear .venv-sbom/tool
	.venv-sbom/tool/bin/python -m pip install --quiet 'cyclonedx-bom>=7,<8'
	touch $@

# The wheel's dependencies stay; the wheel itself is built anew each time.
.venv-wheel/.test: pyproject.toml
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-wheel/bin/python -m pip install --quiet '.[all]' --group test
	touch $@
