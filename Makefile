# `make demo` and `make test` do all their set-up: they need Python >= 3.11 and pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
# Plain "torch" pulls gigabytes of CUDA libraries, and parity is tested on the CPU. Where there is no
# CPU-only build of this version, name another: make test TORCH="torch --index-url ..."
TORCH ?= torch==2.13.0

.PHONY: demo test test-device lint gate clean

demo: $(VENV)/.core
	$(VENV)/bin/jbatch demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

# The tests of the model, the steps and the kernels, without torch: for a second Python and jax.
test-device: $(VENV)/.test-core
	$(VENV)/bin/python -m pytest tests/pallas_kernels tests/weights tests/test_*.py tests/property/test_real_model.py

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/.core: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
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

# Compile the steps for GPUs that are not here. One target per process: XLA compiles a second one wrongly.
# pyenv's shim of a version that is not active exists and fails, so it is run, not looked up.
AOT_PYTHON ?= $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null || ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.12.*/bin/python 2>/dev/null | head -n 1 | grep . || echo $(PYTHON))
gate: .venv-aot/.aot
	.venv-aot/bin/python tools/compile_for.py h200
	.venv-aot/bin/python tools/compile_for.py a100

.venv-aot/.aot: pyproject.toml
	test -x .venv-aot/bin/python || $(AOT_PYTHON) -m venv .venv-aot
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[aot]"
	touch $@

clean:
	rm -rf $(VENV) .venv-* build
