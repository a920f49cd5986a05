"""What the parts' processes are told by their environment: caches, the toolkit, memory, no network."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.gpu_suite.plan import Part

# Always the same: JAX names a kept program by the path of its autotuning cache, too.
WORK = Path(tempfile.gettempdir()) / f"jbatch-gpu-suite-{os.getuid()}"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def of_part(part: Part, work: Path, tiny: bool, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a part's process; `given` is that of this one."""
    env = {"PYTHONUNBUFFERED": "1", **OFFLINE}
    if not (tiny and "JAX_COMPILATION_CACHE_DIR" in given):
        env |= {
            "JAX_COMPILATION_CACHE_DIR": str(work / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
    if tiny:
        return {**given, **env, "JAX_PLATFORMS": "cpu", "NPROC": str(max(8, os.cpu_count() or 1))}
    if part.torch:
        env |= {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "OMP_NUM_THREADS": "1",  # PyTorch's host threads would wait for each other in a spin
            "TORCHINDUCTOR_CACHE_DIR": str(work / "torch"),
        }
    root = cuda_root(given)
    return {**given, **env, **({} if root is None else {"CUDA_ROOT": str(root)})}


def clear(work: Path) -> None:
    """Make the work folder, or leave nothing in it but what was compiled."""
    work.mkdir(parents=True, exist_ok=True)
    for file in work.iterdir():
        if file.name in ("cache", "torch"):
            continue
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()


def cuda_root(given: Mapping[str, str]) -> Path | None:
    """The CUDA toolkit, where one is found. Without it JAX takes the path of a package of wheels, also of one
    that holds no compiler."""
    return next((root for root in _roots(given) if (root / "bin" / "ptxas").exists()), None)


def _roots(given: Mapping[str, str]) -> Iterator[Path]:
    yield from (Path(given[name]) for name in ("CUDA_ROOT", "CUDA_HOME", "CUDA_PATH") if given.get(name))
    ptxas = shutil.which("ptxas", path=given.get("PATH"))
    if ptxas is not None:
        yield Path(ptxas).resolve().parent.parent
    yield Path("/usr/local/cuda")
    for folder in sys.path:
        yield from sorted(Path(folder).glob("nvidia/cu*"))
