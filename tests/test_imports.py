"""Host code, and the bare packages, never load jax: options must be set before it is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_LOAD_JAX = {"device", "llm", "integrations", "lm_eval", "cli"}  # folders and files of jbatch
COMMAND_LINE = ["jbatch.cli.main", "jbatch.cli.options", "jbatch.cli.entry_points", "bench.cli"]


def host_modules() -> list[str]:
    """All others, so that a new folder or file is one of them unless it is named above."""
    found = []
    for path in sorted((ROOT / "jbatch").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] not in MAY_LOAD_JAX:
            found.append(".".join(parts).removesuffix(".__init__"))
    return found


MODULES = ["pallas_kernels", "weights", *host_modules(), *COMMAND_LINE]

# For each module in turn: forget all of ours, import it alone, and see which heavy modules are there.
SCRIPT = """
import importlib, json, sys
found = {}
for name in json.loads(sys.argv[1]):
    for loaded in list(sys.modules):
        if loaded.split(".")[0] in ("jbatch", "pallas_kernels", "weights", "bench", "jax", "flax"):
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


def test_all_rooms_are_looked_at():
    rooms = {name.split(".")[1] for name in MODULES if name.startswith("jbatch.")}
    assert rooms >= {"seam", "host", "engine", "text", "model_dir", "sim", "jobs", "config", "errors", "cli"}
