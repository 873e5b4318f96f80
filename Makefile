# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes the environment if needed.
# `make demo-train` trains what `make demo` only uses, on phantoms.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE = 1

.PHONY: demo demo-train test lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,tensorboard]'
	touch $@

demo: $(READY)
	$(BIN)/latentsynth demo --out demo

demo-train: $(READY)
	$(BIN)/latentsynth demo --train --out demo-train

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

-include results.mk

clean:
	rm -rf $(VENV) build dist *.egg-info
