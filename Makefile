# `make run` and `make test` are all that a fresh machine needs: Python 3.11 to 3.13 and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NAME ?= phi_tiny

.PHONY: run test check clean

# Train on the bundled stories, evaluate, tell a story, write the report.
run: $(VENV)/installed
	$(BIN)/maijax run $(NAME)

# Style, types and every test.
test: check
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n auto --dist loadfile

check: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit( \
	  "$(PYTHON) is Python %d.%d; give one from 3.11 to 3.13, e.g. make $(MAKECMDGOALS) PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
