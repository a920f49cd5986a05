# `make demo` and `make test` do all their set-up: they need Python >= 3.11 and pip, nothing else.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
# Two processes: most tests keep one core busy. A file stays in one, for what its tests share is compiled once.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25
# Parity is tested on the CPU. Where pip finds no CPU-only build of this version it installs the one with
# CUDA libraries, several GB; another can be named: make test TORCH="torch --index-url ..."
TORCH ?= torch==2.13.0
# pyenv's shim of a version that is not active exists and fails, so it is run, not looked up.
find_python = $(shell python$(1) -c 'import sys; print(sys.executable)' 2>/dev/null || \
  ls $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$(1).*/bin/python 2>/dev/null | head -n 1)
PYTHON311 ?= $(call find_python,3.11)
PYTHON312 ?= $(call find_python,3.12)
AOT_VENVS = $(or $(strip $(if $(PYTHON312),.venv-aot-312) $(if $(PYTHON311),.venv-aot-311)),.venv-aot)

.PHONY: demo test test-long test-core test-schedules test-312 test-lm-eval test-ray test-report lint gate gate-quick clean $(AOT_VENVS:%=%/h200) $(AOT_VENVS:%=%/a100)

demo: $(VENV)/.core
	$(VENV)/bin/jbatch demo

test: $(VENV)/.test
	$(PYTEST)

# All of them, each in full: before a release, and after a change to what they draw from.
test-long: $(VENV)/.test
	$(PYTEST) --long

# Ten thousand random schedules under all policies, every invariant checked after every step.
test-schedules: $(VENV)/.test
	$(VENV)/bin/python -m pytest --long tests/property/test_random_schedules.py

# What may differ with another jax, or with programs that are optimised as a user's are: kernels, compiled
# steps, the model. It needs no torch.
test-core: $(VENV)/.test-core
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) tests/pallas_kernels tests/jbatch/device tests/property/test_real_model.py

# The same on a second Python, which gets the newest jax, where one is found.
test-312:
	$(if $(PYTHON312),$(MAKE) test-core PYTHON=$(PYTHON312) VENV=.venv-312,@echo "no Python 3.12 found")

# jbatch in the lm-evaluation-harness against the harness's own model; in an environment of its own, for the
# harness brings many packages along.
test-lm-eval: .venv-lm-eval/.ready
	.venv-lm-eval/bin/python -m pytest tests/jbatch/integrations/test_lm_eval.py

# A report in headless Chromium; it leaves screenshots in build/report, to be looked at.
test-report: $(VENV)/.test
	@command -v chromedriver >/dev/null || { echo "no chromedriver: apt-get install chromium chromium-driver" >&2; exit 1; }
	$(VENV)/bin/python -m pytest --long tests/bench/report/test_browser.py

# jbatch in a Ray cluster of this machine; in an environment of its own, for Ray takes 600 MB.
test-ray: .venv-ray/.ready
	.venv-ray/bin/python -m pytest tests/jbatch/integrations/ray_data

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Compile kernels and steps for GPUs that are not here, with the jax of each Python that is. One target per
# process: XLA compiles a second one wrongly.
gate: $(AOT_VENVS:%=%/.aot)
	rm -f build/gate-*.json
	status=0; for venv in $(AOT_VENVS); do for target in h200 a100; do \
	  $$venv/bin/python -m tools.gate $$target || status=1; done; done; exit $$status

# A part that covers: each kernel for each size of head, whole decode steps. A process keeps one core busy.
gate-quick: $(AOT_VENVS:%=%/.aot)
	$(MAKE) --jobs 2 --keep-going --output-sync=target $(AOT_VENVS:%=%/h200) $(AOT_VENVS:%=%/a100)

$(AOT_VENVS:%=%/h200) $(AOT_VENVS:%=%/a100):
	$(@D)/bin/python -m tools.gate $(@F) --quick

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

.venv-lm-eval/.ready: pyproject.toml
	.venv-lm-eval/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-lm-eval
	.venv-lm-eval/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-lm-eval/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test,lm-eval]" "lm-eval[hf]"
	touch $@

.venv-ray/.ready: pyproject.toml
	.venv-ray/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test-core,ray]"
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@

.venv-aot-312/.aot: AOT_PYTHON = $(PYTHON312)
.venv-aot-311/.aot: AOT_PYTHON = $(PYTHON311)
.venv-aot/.aot: AOT_PYTHON = $(PYTHON)
$(AOT_VENVS:%=%/.aot): %/.aot: pyproject.toml
	$*/bin/python -m pip --version >/dev/null 2>&1 || $(AOT_PYTHON) -m venv --clear $*
	$*/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[aot]"
	touch $@

clean:
	rm -rf $(VENV) .venv-* build
