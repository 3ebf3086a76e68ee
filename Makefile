# `make demo`, `make test`, `make lint` and `make docs` each do all of their own set-up: a virtual environment, the pinned
# packages of constraints.txt, this package. Needed beforehand: Python 3.11, make and access to PyPI.

PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: help setup demo test slow lint docs clean

help:
	@echo "make demo   train a small potential on real DFT data, relax a molecule, run MD (runs/demo)"
	@echo "make test   run the tests        make slow   run the long ones"
	@echo "make docs   the documentation, in build/site"
	@echo "make lint   ruff and mypy        make clean  remove the environment and runs"

$(STAMP): pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[label,test,lint]"
	touch $(STAMP)

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py --run-dir runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[label,docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
