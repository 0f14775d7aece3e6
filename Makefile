# Two commands do everything on a fresh machine (Python 3.11 or newer, pip, gcc):
#   make demo    the main job on the embedded model and data
#   make test    the whole test suite
# Each creates its own environment in .venv.
#   make test-lowest    the suite, but for its slow tests, on exactly the lower bounds of pyproject.toml, in .venv-lowest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-lowest lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,rtl,report,search,distributed]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/intvit demo --output demo-output

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2

.venv-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	.venv-lowest/bin/python -m pip install --quiet $$($(PYTHON) tools/lowest.py)
	.venv-lowest/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/python -m pytest -q -n 2 -m "not slow"

lint:
	$(PYTHON) -m pre_commit run --all-files

clean:
	rm -rf $(VENV) .venv-lowest demo-output
