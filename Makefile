# On a fresh machine with Python 3.11 or newer: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FAST := $(patsubst %,tests/test_%.py,names capacity codec heap store inbox waiting resting aio sync imports public)

.PHONY: demo test test-fast lint test-pythons test-slow bench docs clean

demo: .venv-demo/.ready
	.venv-demo/bin/python examples/echo_async.py demo

test: lint
	$(BIN)/python -m pytest

test-fast: lint
	$(BIN)/python -m pytest -q -x $(FAST)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-pythons: $(READY)
	$(BIN)/python -m tests.pythons $(ONLY)

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

bench: $(READY)
	$(BIN)/python -m benchmarks

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What a demo needs, and nothing else.
.venv-demo/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-* .stack build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
