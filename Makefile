# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
SOURCES := *.py api bench evaluate geometry harvest infer models papers report sae service store tests tools train

.PHONY: demo test check format docs audit test-tl4 test-triton clean

demo: $(VENV)/.installed  ## the main job on the embedded model, offline once installed
	$(BIN)/splinterp demo

# On two cores three processes, since some tests wait for others; a file's tests in one of them. Most are too small for a second thread to help.
test: $(VENV)/.installed-dev  ## the tests; offline once installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed-dev  ## lint, format, types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/basedpyright --pythonpath $(BIN)/python --level error

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: .venv-docs/.installed  ## the documentation into site/; any warning is an error, and so is a page that would load something from the network
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "The documentation: site/index.html"

# Of its own, without torch: pages are made from the sources' text.
.venv-docs/.installed: docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip --disable-pip-version-check install --quiet --requirement docs/requirements.txt
	touch $@

# torch goes first and pinned: left to the resolver, a newer build with gigabytes of CUDA may come instead.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "splinterp needs Python 3.11 or newer; name one with make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV), once …"
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev,saelens]'
	# Alone: its classes are what the export for Neuronpedia is read with, its own dependencies are of years ago.
	$(PIP) --no-deps sae-dashboard==0.8.0
	touch $@

# Asks the advisory database about every pinned version. Of its own: it needs a network, and says so where there is none.
audit: .venv-audit/.installed  ## known weaknesses of the pinned packages
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

.venv-audit/.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check install --quiet 'pip-audit>=2.7'
	touch $@

# The other line of TransformerLens. SAELens needs the older one, so that its interop tests are left out here.
test-tl4: .venv-tl4/.installed
	.venv-tl4/bin/python -m pytest

.venv-tl4/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tl4
	grep -v -e '^transformer-lens==' -e '^sae-lens==' constraints.txt > .venv-tl4/constraints.txt
	.venv-tl4/bin/python -m pip install --quiet --constraint .venv-tl4/constraints.txt torch
	.venv-tl4/bin/python -m pip install --quiet --constraint .venv-tl4/constraints.txt --editable '.[dev]' transformer-lens==4.3.0
	touch $@

# The kernels for GPUs, in Triton's interpreter and compiled: no GPU is needed. The version is the one that torch 2.13 for CUDA brings.
test-triton: .venv-triton/.installed
	TRITON_INTERPRET=1 .venv-triton/bin/python -m pytest tests/test_kernels.py

.venv-triton/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-triton/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' triton==3.7.1
	touch $@

clean:
	rm -rf .venv .venv-audit .venv-docs .venv-tl4 .venv-triton build site *.egg-info
