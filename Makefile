# `make run` and `make test` need python3 (3.11 or newer), make and a C compiler, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run quick test peers lint install clean
run: $(READY) ## train, measure, predict, and write the page
	$(BIN)/python run_all.py bench

quick: $(READY) ## the same with four short cases
	$(BIN)/python run_all.py bench --suite quick

test: $(READY) ## every test
	$(BIN)/python -m pytest -n 2 --dist loadfile

peers: $(READY) ## other tools' estimates beside ours, on the same measured runs
	$(PIP) --constraint constraints.txt --editable '.[peers]'
	$(PIP) --constraint constraints.txt --no-deps llm-analysis
	$(BIN)/python run_all.py bench --suite peers

lint: $(READY) ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

install: $(READY) ## the virtual environment alone

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(f"python3 is {sys.version.split()[0]}; 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable '.[test]'
	$(PIP) --constraint constraints.txt --no-deps torchtitan
	touch $(READY)

clean: ## remove the environment and caches; runs are kept
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
