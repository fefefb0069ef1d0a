# Everything a person or CI does here. A fresh machine needs Python 3.11 and make, nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= data
READY  := $(VENV)/.installed

.PHONY: demo test lint bench docs-check clean

# One stamp: made anew only when the requirements or the pins change.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "Convoy needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/convoy train --config examples/demo.toml

test: $(READY)
	$(BIN)/python -m pytest --numprocesses=3 --dist=worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_docs.py

docs-check: $(READY)
	$(BIN)/python tools/check_docs.py

bench: $(READY)
	$(BIN)/python benchmarks/vs_ddp.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/wire_bytes.py
	$(BIN)/python benchmarks/accuracy.py --data-dir $(DATA)
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/simulator.py
	$(BIN)/python benchmarks/downpour.py kills

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
