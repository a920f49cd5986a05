# `make demo` and `make test` do all their set-up: they need Python >= 3.11 and pip, nothing else.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
# Parity is tested on the CPU. Where pip finds no CPU-only build of this version it installs the one with
# CUDA libraries, several GB; another can be named: make test TORCH="torch --index-url ..."
TORCH ?= torch==2.13.0
# pyenv's shim of a version that is not active exists and fails, so it is run, not looked up.
PYTHON312 ?= $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null || \
  ls $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.12.*/bin/python 2>/dev/null | head -n 1)

.PHONY: demo test test-core test-312 lint gate clean

demo: $(VENV)/.core
	$(VENV)/bin/jbatch demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

# The tests of the model, the steps and the kernels: all that need no torch.
test-core: $(VENV)/.test-core
	$(VENV)/bin/python -m pytest tests/pallas_kernels tests/weights tests/test_*.py tests/property/test_real_model.py

# The same on a second Python and another jax, where one is found.
test-312:
	$(if $(PYTHON312),$(MAKE) test-core PYTHON=$(PYTHON312) VENV=.venv-312,@echo "no Python 3.12 found")

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Compile the steps for GPUs that are not here. One target per process: XLA compiles a second one wrongly.
gate: .venv-aot/.aot
	.venv-aot/bin/python tools/compile_for.py h200
	.venv-aot/bin/python tools/compile_for.py a100

$(VENV)/.core: pyproject.toml
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) --editable ".[test]"
	touch $@

$(VENV)/.test-core: $(VENV)/.core
	$(PIP_INSTALL) --editable ".[test-core]"
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@

.venv-aot/.aot: pyproject.toml
	.venv-aot/bin/python -m pip --version >/dev/null 2>&1 || $(or $(PYTHON312),$(PYTHON)) -m venv --clear .venv-aot
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[aot]"
	touch $@

clean:
	rm -rf $(VENV) .venv-* build
