# Every target makes .venv when it is not there, or when pyproject.toml changed; a second call is quick.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)
export OMP_NUM_THREADS ?= $(shell nproc)

.PHONY: help demo lint format quick test bench faults clean
help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("vfz needs Python 3.11 or later, this is " + sys.version.split()[0] + "; use make PYTHON=...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	rm -f $(VENV)/.installed-*
	touch $@

demo: $(STAMP)  ## extract, train and probe on built-in videos
	$(BIN)/vfz demo --out .demo

lint: $(STAMP)  ## format, lint, types and imports, checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The inner loop, under a minute on two cores.
quick: $(STAMP)  ## style, and the tests marked quick: the inner loop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -m "quick and not faults"

test: lint  ## lint, then all tests in as many processes as there are cores, four at most: what CI runs
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

bench: $(STAMP)  ## benchmarks: ratios against named baselines
	$(BIN)/python -m pytest -m bench -s tests/benchmarks --timeout 1800

faults: $(STAMP)  ## the long fault campaigns
	$(BIN)/pytest -m faults --timeout 3600

clean:  ## remove everything that these targets made
	rm -rf $(VENV) .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
