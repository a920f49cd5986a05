"""A GPU that is not here: what to compile for, and where the compilers leave what they say of it.

One target per process: XLA compiles a second one wrongly.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu_suite.archive import TUNED
from tools.gate import ptxas

DESCRIPTIONS = Path(__file__).parent / "targets"
NAMES = sorted(path.stem for path in DESCRIPTIONS.glob("*.txtpb"))


class Target(NamedTuple):
    """A device that can be compiled for, and nothing else."""

    name: str
    devices: tuple[Any, ...]  # that compute each step together
    mesh: Any  # abstract: Pallas Triton asks it for the device's compute capability
    limits: ptxas.Limits  # of a core
    dump: Path  # empty between compilations
    mosaic_reports: dict[str, ptxas.Report]  # of the kernels compiled so far, by MLIR

    @property
    def device(self) -> Any:
        """The first of them."""
        return self.devices[0]


def set_up(name: str, dump: Path, tuned: Path | None = None, num_ranks: int = 1) -> Target:
    """Must come before the first import of jax.

    Args:
      tuned: what an archive of `bench.gpu_suite` held: products are then what the autotuner chose on a device
        of that description, as far as it has seen them.
      num_ranks: devices in one machine.
    """
    if "jax" in sys.modules:
        raise RuntimeError("jax was imported before its flags were set")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *xla_flags(dump, tuned)])
    description = (DESCRIPTIONS / f"{name}.txtpb" if tuned is None else tuned / "target.txtpb").read_text()
    with captured_stderr():
        from jax.experimental import topologies

        topology = topologies.get_topology_desc(
            platform="cuda", target_config=description, topology=f"1x1x{num_ranks}"
        )
        from jbatch.device.platform import compile_alike

        compile_alike()
        from jbatch.device.ranks import AXIS

        mesh = topologies.make_mesh(topo=topology, mesh_shape=(num_ranks,), axis_names=(AXIS,))
    return Target(name, tuple(topology.devices), mesh.abstract_mesh, ptxas.limits(description), dump, {})


def xla_flags(dump: Path, tuned: Path | None = None) -> list[str]:
    """What is dumped, and where tuned choices lie."""
    flags = [f"--xla_dump_to={dump}", "--xla_dump_emitter_re=ptx"]
    if tuned is not None:
        flags.append(f"--xla_gpu_per_fusion_autotune_cache_dir={tuned / 'cache' / TUNED}")
    return flags


@contextlib.contextmanager
def compiling(target: Target, *, mosaic_dump: bool = False) -> Iterator[None]:
    """Lower and compile for the target inside; `mosaic_dump` has Mosaic GPU kernels described as well."""
    import jax

    for file in target.dump.iterdir():
        file.unlink()
    if mosaic_dump:
        os.environ["MOSAIC_GPU_DUMP_TO"] = str(target.dump)
    try:
        with (
            captured_stderr(),
            jax.sharding.use_abstract_mesh(target.mesh),
            jax.default_device(target.device),
        ):
            yield
    finally:
        os.environ.pop("MOSAIC_GPU_DUMP_TO", None)


@contextlib.contextmanager
def captured_stderr() -> Iterator[None]:
    """Keep quiet what C++ says, such as that there is no GPU and no disassembler; show it after an error."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(saved, file.read()[-4000:])
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def thunks(target: Target) -> str:
    """XLA's list of what the program compiled last launches: after its passes, where they changed it."""
    for name in ("thunk_sequence_after_thunk_passes", "thunk_sequence"):
        for file in target.dump.glob(f"*.{name}.txt"):
            return file.read_text()
    return ""


def find_ptxas() -> Path:
    """The ptxas of the wheels.

    Raises:
      FileNotFoundError: where they are not installed.
    """
    import nvidia

    for root in nvidia.__path__:
        for path in sorted(Path(root).glob("*/bin/ptxas")):
            return path
    raise FileNotFoundError("no ptxas: install the extra `aot`")
