# Each target makes its own environment first. Nothing else is needed but Python 3.11 or 3.12 and make.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: quickstart test test-all check docs wheel install clean

quickstart: install  ## the whole way on this machine: FFT baseline, mask search, verdict, mask, model
	$(BIN)/python cluster/local.py -- python -m mft_ray.tune --config tune_spaces/quickstart.yaml $(ARGS)

test: install  ## the tests, but for those that are slow by nature; says what is skipped and why
	$(BIN)/python -m pytest -m "not slow or core" $(ARGS)

test-all: install $(VENV)/more  ## all tests
	$(BIN)/python -m pytest $(ARGS)

check: install docs wheel  ## lint, types, import contract, documentation, wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini tests benchmarks examples docs/hooks.py
	$(BIN)/lint-imports

docs: install  ## the documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: install  ## the wheel, in dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . > /dev/null

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; install one or say make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# A server of MLflow is heavy, and every process would import bitsandbytes, since peft does: for their tests alone.
$(VENV)/more: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[trackers,8bit]'
	touch $@

clean:
	rm -rf $(VENV) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
