# Every target makes .venv when it is not there, or when pyproject.toml changed; a second call is quick.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)
export OMP_NUM_THREADS ?= $(shell nproc)

.PHONY: help demo quick test lint format bench faults clean
help:
	@echo "make demo | quick | test | lint | format | bench | faults | clean"

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("vfz needs Python 3.11 or later, this is " + sys.version.split()[0] + "; use make PYTHON=...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	rm -f $(VENV)/.installed-*
	touch $@

demo: $(STAMP)
	$(BIN)/vfz demo --out .demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The inner loop, under a minute on two cores: style, and the tests marked `quick`.
quick: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -m "quick and not faults"

test: lint
	$(BIN)/pytest

bench: $(STAMP)
	$(BIN)/python -m pytest -m bench -s tests/benchmarks --timeout 1800

faults: $(STAMP)
	$(BIN)/pytest -m faults --timeout 3600

clean:
	rm -rf $(VENV) .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
