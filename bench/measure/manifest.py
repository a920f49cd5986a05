"""What a result was measured on and with: `python -m bench.measure.manifest` prints it."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]


def collect() -> dict[str, Any]:
    """Commit, versions, device, flags and date; None for what this machine does not tell."""
    import jax
    import jaxlib

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "changed_files": _lines("git", "-C", str(ROOT), "status", "--porcelain"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "platform_version": device.client.platform_version,
        "device": device.device_kind,
        "machine": machine(),
        "num_devices": len(jax.devices()),
        "compute_capability": getattr(device, "compute_capability", None),
        "memory_bytes": stats.get("bytes_limit"),
        "driver": _smi("name,driver_version,clocks.sm,power.limit"),
        "clocks": clocks(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
    }


def clocks() -> str | None:
    """The GPU's clocks and temperature right now; None where there is no GPU."""
    return _smi("clocks.sm,clocks.mem,temperature.gpu,clocks_event_reasons.active")


def prepare_smoke() -> None:
    """Set what a smoke run needs before JAX starts its backend: Mosaic's interpreter runs each warpgroup on a
    thread of XLA's pool, which has one per core unless this says otherwise."""
    os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))


def machine() -> str:
    """A folder's name for this machine's results, such as "nvidia-h200"."""
    import jax

    return re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")


def results_dir(smoke: bool, output_dir: pathlib.Path | None = None, name: str | None = None) -> pathlib.Path:
    """Where results go: the folder given; else bench/results/MACHINE, or build/ for a smoke run, whose
    results are worth nothing. The machine is this one, unless a `name` is given."""
    base = ROOT / "build" if smoke else ROOT / "bench" / "results"
    path = output_dir
    if path is None:
        name = name or machine()
        path = base / (f"smoke-{name}" if smoke else name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _smi(query: str) -> str | None:
    return _output("nvidia-smi", f"--query-gpu={query}", "--format=csv")


def _output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _lines(*command: str) -> list[str] | None:
    output = _output(*command)
    return None if output is None else output.splitlines()


if __name__ == "__main__":
    print(json.dumps(collect()))
