# Every command a person needs; each sets itself up first. Needs: make, Python >= 3.11, and a network once.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first of these that is new enough; `make PYTHON=/path/to/python ...` chooses another.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
PYTHON ?= $(firstword $(foreach name,$(CANDIDATES),$(shell $(name) -c 'import sys; print("$(name)" * (sys.version_info >= (3, 11)))' 2>/dev/null)))

# What a user's settings must not change: where packages go, and what an unreliable network does to us.
PIP := env -u PIP_USER -u PIP_TARGET -u PIP_PREFIX -u PYTHONPATH -u PYTHONHOME \
	PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_RETRIES=10 PIP_DEFAULT_TIMEOUT=$${PIP_DEFAULT_TIMEOUT:-60} $(BIN)/python -m pip
LOCK := env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 \
	--only-binary :all: --no-annotate --no-header --quiet
# Processes that share the tests. Many tests wait for a server or a clock, so two even on one core; each may hold 2 GB, so six at most.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 2 ? 2 : cores > 6 ? 6 : cores)))
# With byte code that is kept: hundreds of processes would each compile our sources anew where this variable is set, as in many images.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup bench report demo test test-fast check format lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make .venv with everything in it; costs nothing when it is there

bench: $(READY) ## a million events a second through everything, judged; options in ARGS="--seconds 20"
	$(BIN)/python -m keystone.bench --eps 1000000 $(ARGS)

report: $(READY) ## a short bench at a rate that any machine takes, then its latencies as one page, report.html; options in ARGS
	$(BIN)/python -m keystone.bench --eps 100000 --seconds 20 --report $(ARGS)

demo: $(READY) ## the whole way on real servers: devices, Kafka, a run, a search server, Iceberg on S3; all compared
	$(BIN)/python -m tests.demo $(ARGS)

test: $(READY) ## every test, shared by a few processes
	$(PYTEST) -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

test-fast: $(READY) ## the tests of less than a minute in all, on all cores, laws by few examples: none that is slow or starts Ray, Kafka, S3 or a search server
	$(PYTEST) -n auto --dist loadfile --hypothesis-profile=fast -m "not slow and not ray and not kafka and not s3 and not search" $(ARGS)

check: $(READY) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY) ## resolve the dependencies anew (for maintainers; uv comes from the registry)
	$(PIP) install --quiet uv
	$(LOCK) --upgrade --extra notebooks --group dev --generate-hashes --output-file requirements.lock
	$(LOCK) --constraints requirements.lock --output-file requirements.txt
	$(LOCK) --constraints requirements.lock --extra cluster --generate-hashes --output-file deploy/requirements.lock
	@sed -i '1i # What the program itself needs, pinned, for plain pip: pip install -r requirements.txt\n# Made by "make lock", as is requirements.lock, which adds hashes and the tools of development.' requirements.txt

clean: ## remove .venv and everything that tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

# The stamp is as new as the lock it was made from: a new lock updates .venv, anything else leaves it alone.
$(READY): requirements.lock pyproject.toml
	@test -n '$(PYTHON)' || { echo 'make: Keystone needs Python 3.11 or newer; none of these is: $(CANDIDATES). Install one, or say make PYTHON=/path/to/python'; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'make: $(PYTHON) is not a Python of 3.11 or newer: say make PYTHON=/path/to/python'; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && $(BIN)/python -m pip --version >/dev/null 2>&1 || \
		'$(PYTHON)' -m venv --clear $(VENV) || { echo 'make: $(PYTHON) cannot make a virtual environment: install its venv package (Debian, Ubuntu: python3-venv)'; exit 1; }
	@echo 'Setting up $(VENV): locked packages, about 430 MB, once'
	@$(PIP) install --quiet --require-hashes --only-binary :all: --requirement requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
