# `make ablation` and `make test` need Python >= 3.11 with venv, and nothing else.
PYTHON ?= python3
WORKLOAD ?= digits
RUNS ?= runs/ladder-$(WORKLOAD)
SEEDS ?= 0
BIN := .venv/bin

.PHONY: install ablation test fast docs lint clean

install: .venv/installed

ablation: .venv/installed
	$(BIN)/python experiments/launch.py --study=ladder --workload=$(WORKLOAD) --seeds=$(SEEDS) --runs=$(RUNS)
	$(BIN)/python experiments/compare.py $(RUNS) --out=report

# A file at a time in each of two processes, in the order of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/installed-dev
	$(PYTEST)

# What takes less than a third of a second, of every part, and a training of 30 steps.
fast: .venv/installed-dev
	$(PYTEST) -m "not slow"

# Every command of README.md and docs/, on the smallest workload: many minutes.
docs: .venv/installed-dev
	EDM_JAX_TEST_DOCS=1 $(BIN)/python -m pytest tests/test_docs.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: edm_jax needs Python 3.11 or later, and $(PYTHON) is older or missing; name another one with PYTHON=python3.12." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: $(PYTHON) has no venv module; install it (on Debian: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv: about 1 GB, a minute or two."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .cache build *.egg-info
