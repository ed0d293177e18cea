# Everything runs in a virtual environment of its own. Override PYTHON, VENV, HOST, PORT, DATA_DIR as you like:
#   make demo PYTHON=python3.12 PORT=9000
PYTHON   ?= python3
VENV     ?= .venv
HOST     ?= 127.0.0.1
PORT     ?= 8000
DATA_DIR ?= $(HOME)/.local/share/etd-jobs
BIN      := $(VENV)/bin
READY    := $(VENV)/.installed

.PHONY: help setup demo serve test gpu check lock clean

help:            ## this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

setup: $(READY)  ## install everything into $(VENV), versions as in constraints.txt

$(READY): pyproject.toml constraints.txt embedded.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "etd-ds needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r embedded.lock
	touch $@

demo: setup      ## the main job end to end: serve, post, watch, download, load, compare
	$(BIN)/etd-jobs demo

serve: setup     ## run the job server on $(HOST):$(PORT)
	$(BIN)/etd-jobs serve --host $(HOST) --port $(PORT) --data-dir $(DATA_DIR)

test: setup      ## all tests that this machine can run, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25

gpu: setup       ## the tests that need a GPU, then the step's benchmark on it
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks.step --device cuda

check: setup     ## linters, types, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock:            ## resolve constraints.txt anew (needs uv)
	uv pip compile --universal --python-version 3.10 --extra dev --extra report --extra postgres --extra s3 --extra otel --no-annotate --no-header pyproject.toml -o constraints.txt

clean:           ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
