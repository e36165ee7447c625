# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv themselves.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# A second call finds these and installs nothing; a changed pyproject.toml or pin installs again.
DEMO   := $(VENV)/.installed-demo
DEV    := $(VENV)/.installed-dev

.PHONY: help demo test test-all clean

help:
	@echo "make demo      the whole pipeline on a synthetic data set, into runs/shapes"
	@echo "make test      lint, types and every quick test"
	@echo "make test-all  the same with the slow whole-process and fault tests"
	@echo "make clean     delete .venv; runs/ is kept"

demo: $(DEMO)
	$(BIN)/pmm run recipes/shapes.yaml --run-dir runs/shapes

# Two tests at a time, each half with a Ray of its own. The slow ones kill, wait and measure: alone.
# Ray renices its workers to 15; tests with time limits must not starve beside other work.
test test-all: export RAY_worker_niceness = 0

test: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow" -n 2 --dist worksteal

test-all: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

clean:
	rm -rf $(VENV)

$(DEMO): pyproject.toml latticecrf/pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ./latticecrf -e .
	@touch $@

$(DEV): pyproject.toml latticecrf/pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ./latticecrf -e '.[dev]'
	@touch $(DEMO) $@

# pip is the last thing that venv makes: an interrupted set-up is done again
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "PMM-Ray needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
