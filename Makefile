# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes the environment if needed.
# `make demo-train` trains what `make demo` only uses, on phantoms.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE = 1

.PHONY: demo demo-train test lint docs bench tour clean

$(READY): pyproject.toml constraints.txt
	@echo "1 of 3: an environment in $(VENV), once; minutes, most of them for torch"
	$(PYTHON) -m venv $(VENV)
	@echo "2 of 3: torch"
	$(INSTALL) torch
	@echo "3 of 3: latentsynth and the other packages"
	$(INSTALL) --editable '.[dev,docs,tensorboard]'
	@touch $@

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

# The site, in site/: needs no network; a link that leads nowhere is an error.
docs: $(READY)
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env docs site

# Comparisons side by side on this machine: minutes.
bench: $(READY)
	$(BIN)/python -m benchmarks compare --out benchmarks.json

# The notebook of the tour, from docs/tour.py: five minutes.
tour: $(READY)
	$(BIN)/python docs/notebook.py

-include results.mk

clean:
	rm -rf $(VENV) build dist *.egg-info
