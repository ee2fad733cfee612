# make demo    CUCN on the embedded faces, with a report page     make test    every check
# make book    the book, in book/_build/html                     make lab     JupyterLab in nbs/
# make docs    nbdev's own pages, in _docs                       make soak    kills in full, and a chapter in JupyterLab
# make notebooks [NB="12_backbone 14_losses"]    run notebooks in place, clean and export them
# make export  package and README from the notebooks             make clean   remove what was built
# The first call makes the environment $(VENV); PYTHON says with which Python (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
PIP = $(PY) -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt

.PHONY: demo test book docs soak lab notebooks export clean
.DEFAULT_GOAL := test

$(VENV)/.package: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), about two minutes"
	$(PIP) -e .
	touch $@

$(VENV)/.installed: $(VENV)/.package
	@echo "installing what tests and book need, about two minutes more"
	$(PIP) -e ".[dev,book]"
	touch $@

demo: $(VENV)/.package
	rm -rf runs/demo
	$(BIN)/cucn train --method cucn --data faces --out runs/demo --preset scratch --epochs 17 \
		--weights results/networks/faces_trunk.safetensors --stem small --width 16 --cbam open
	$(BIN)/cucn evaluate runs/demo
	$(BIN)/cucn report runs/demo

test: $(VENV)/.installed
	$(PY) tools/check.py

book: $(VENV)/.installed
	$(PY) tools/build_book.py

docs: $(VENV)/.installed
	$(PY) tools/build_docs.py

soak: $(VENV)/.installed
	SOAK=1 $(PY) -m pytest -m soak -rs tests

lab: $(VENV)/.installed
	$(BIN)/jupyter lab --notebook-dir=.

notebooks: $(VENV)/.installed
	$(PY) tools/run_notebooks.py $(NB)

export: $(VENV)/.installed
	$(BIN)/nbdev_export
	$(PY) tools/make_readme.py

clean:
	rm -rf _proc _docs _build book/_build build dist runs/demo .pytest_cache .ruff_cache .mypy_cache
