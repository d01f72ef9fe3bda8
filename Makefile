# Every target makes its own .venv first; a stamp file per set of dependencies keeps it from being made twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base-installed
DEV := $(VENV)/.dev-installed
# Two test processes with one thread each use two cores better than one process with two threads.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -n 2

.PHONY: help demo test test-all bench lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(BASE)  ## read documents, draw, animate, drive robots, chat; writes demo/index.html
	$(BIN)/python -m omni.demo

test: $(DEV)  ## lint and the fast tests: what continuous integration runs
	$(BIN)/ruff check .
	$(PYTEST)

test-all: $(DEV)  ## the fast tests and the slow ones
	$(BIN)/ruff check .
	$(PYTEST) -m "slow or not slow"

bench: $(DEV)  ## our speed beside the reference implementation's
	$(BIN)/python -m omni bench language

lint: $(DEV)  ## report what ruff finds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, builds and caches
	rm -rf $(VENV) build dist demo .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[robot]"
	touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "gym-pusht>=0.1.6,<0.2"
	touch $(BASE) $@
