"""The host layer, and the bare packages, never load jax: options must be set before it is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST_MODULES = (
    *(
        "config",
        "config_json",
        "errors",
        "outputs",
        "records",
        "request_line",
        "sampling_params",
        "request",
        "pages",
        "policy",
        "plan",
        "metrics",
    ),
    *("scheduler", "fake_runner", "plan_file", "replay"),
    *("check_params", "logprobs", "row_data"),
    *("job", "job_cli", "job_eta", "job_files", "job_input", "job_options", "job_output", "job_resume"),
    *("live", "prompts", "stream", "chat", "renderer", "scoring"),
    *("job_signals", "job_state", "job_summary", "cli"),
)
MODULES = ["jbatch", "pallas_kernels", "weights", *[f"jbatch.{name}" for name in HOST_MODULES]]

# For each module in turn: forget all of ours, import it alone, and see which heavy modules are there.
SCRIPT = """
import importlib, json, sys
found = {}
for name in json.loads(sys.argv[1]):
    for loaded in list(sys.modules):
        if loaded.split(".")[0] in ("jbatch", "pallas_kernels", "weights", "jax", "flax"):
            del sys.modules[loaded]
    importlib.import_module(name)
    found[name] = sorted({"jax", "jaxlib", "flax", "orbax"} & sys.modules.keys())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def heavy_modules():
    """What each import loads, in one fresh process."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(MODULES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MODULES)
def test_import_loads_no_jax(name, heavy_modules):
    assert heavy_modules[name] == []
