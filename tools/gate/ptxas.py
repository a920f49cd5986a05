"""What a compiled kernel takes on the device: registers, shared memory, spills, and so its room on a core.

Read from what the compilers leave behind: ptxas' reports, Mosaic GPU's MLIR, XLA's list of launches.
"""

from __future__ import annotations

import itertools
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_STATIC_SMEM = re.compile(r", (\d+) bytes smem")
_REMARK = re.compile(r"\(C\d+\) (.*)")  # such as: Potential Performance Loss: ... serialized ...

_CONSTANT = re.compile(r"(%\w+) = arith\.constant (\d+) :")
_MOSAIC_LAUNCH = re.compile(
    r"gpu\.launch .*?blocks\(.*?\) in \((.*?)\) threads\(.*?\) in \((.*?)\)"
    r" dynamic_shared_memory_size (%\w+)"
)
_XLA_LAUNCH = re.compile(
    r"kCustomKernel .*\] (\S+) grid: \[([\d, ]+)\] threads: \[([\d, ]+)\]\s+shared_memory: (\d+) bytes"
)
_MOSAIC_NAME = re.compile(r"^module @(\w+)", re.MULTILINE)
_MOSAIC_FILE = re.compile(r'mosaic_gpu\.dump_basename = "[^"]*"')
MOSAIC_SUFFIX = "_mosaic_gpu_kernel"  # of a compiled kernel's name
_PTX_ENTRY = re.compile(r"\.entry (\w+)")
_PTX_ARCH = re.compile(r"^\.target (\w+)", re.MULTILINE)

REGISTER_UNIT = 256  # registers are given to a warp in such units; CUDA's occupancy calculator
SYSTEM_SMEM = 1024  # bytes of a CTA's shared memory that CUDA keeps, from compute capability 8.0 on
MAX_CTAS = 32  # of a core


class Report(NamedTuple):
    """ptxas on one kernel."""

    kernel: str
    arch: str
    registers: int  # of a thread
    spill_bytes: int  # stored and loaded
    static_smem: int
    remarks: tuple[str, ...]


class Launch(NamedTuple):
    """How a kernel is launched."""

    num_ctas: int
    threads: int  # of a CTA
    smem_bytes: int  # of a CTA, dynamic


class Limits(NamedTuple):
    """What a core (streaming multiprocessor) has."""

    registers: int
    threads: int
    smem_bytes: int
    num_cores: int


class Resources(NamedTuple):
    """A kernel's report and launch together."""

    kernel: str
    registers: int
    smem_bytes: int
    spill_bytes: int
    threads: int
    num_ctas: int
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, report: Report, launch: Launch) -> Resources:
        # XLA's launches and Mosaic's sizes count static shared memory too, where there is any to speak of.
        smem = max(launch.smem_bytes, report.static_smem)
        sizes = (report.registers, smem, report.spill_bytes, launch.threads, launch.num_ctas)
        return cls(report.kernel, *sizes, report.remarks)


def parse(text: str) -> list[Report]:
    """The reports in ptxas' verbose output."""
    reports = []
    begins = [match.start() for match in _ENTRY.finditer(text)]
    for begin, end in itertools.pairwise([*begins, len(text)]):
        part = text[begin:end]
        entry, frame, used = _ENTRY.search(part), _FRAME.search(part), _USED.search(part)
        if entry and frame and used:
            smem = _STATIC_SMEM.search(part)
            spill_bytes = int(frame[2]) + int(frame[3])
            remarks = tuple(_REMARK.findall(text if len(begins) == 1 else part))
            sizes = (int(used[1]), spill_bytes, int(smem[1]) if smem else 0)
            reports.append(Report(entry[1], entry[2], *sizes, remarks))
    return reports


def mosaic_launch(mlir: str) -> Launch:
    """The launch in a Mosaic GPU kernel's MLIR.

    Raises:
      ValueError: if there is none.
    """
    match = _MOSAIC_LAUNCH.search(mlir)
    if match is None:
        raise ValueError("no gpu.launch with a size of shared memory in this MLIR")
    constants = {name: int(value) for name, value in _CONSTANT.findall(mlir)}
    grid, block = ([constants[name] for name in re.findall(r"= (%\w+)", part)] for part in match.groups()[:2])
    return Launch(math.prod(grid), math.prod(block), constants[match[3]])


def mosaic_kernels(dump: Path, compiled: dict[str, Report]) -> Iterator[tuple[Report, Launch]]:
    """The Mosaic GPU kernels of a program, of which each name is one.

    Args:
      compiled: reports of this process by MLIR; those of this program are added. From jax 0.12 on, a kernel
        that was compiled before is not compiled again.
    """
    files = dump.glob("*.ptxas")
    reports = {report.kernel: report for file in files for report in parse(file.read_text())}
    for file in sorted(dump.glob("*.before_layout_inference.txt")):
        mlir = file.read_text()
        name, text = _MOSAIC_NAME.search(mlir), _MOSAIC_FILE.sub("", mlir)
        report = reports.get(f"{name[1]}{MOSAIC_SUFFIX}" if name else "") or compiled.get(text)
        if report is not None:
            compiled[text] = report
            yield report, mosaic_launch(mlir)


def xla_launches(thunks: str) -> dict[str, Launch]:
    """Launches by kernel in XLA's dump of what a program runs."""
    return {
        name: Launch(_volume(grid), _volume(threads), int(smem))
        for name, grid, threads, smem in _XLA_LAUNCH.findall(thunks)
    }


def _volume(dims: str) -> int:
    return math.prod(int(dim) for dim in dims.split(","))


def entry_name(ptx: str) -> str:
    """The kernel in a PTX module; empty where there is none."""
    match = _PTX_ENTRY.search(ptx)
    return match[1] if match else ""


def run(ptxas: Path, ptx_file: Path) -> list[Report]:
    """Compile a PTX file for the architecture that it names, for the report alone."""
    match = _PTX_ARCH.search(ptx_file.read_text())
    if match is None:
        raise ValueError(f"{ptx_file.name}: PTX without a target")
    command = [str(ptxas), "-v", f"-arch={match[1]}", "-o", "/dev/null", str(ptx_file)]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stderr)


def limits(target_config: str) -> Limits:
    """A core's limits, from XLA's description of the device."""
    names = ("registers_per_core_limit", "threads_per_core_limit", "shared_memory_per_core", "core_count")
    values = {name: re.search(rf"\b{name}: (\d+)", target_config) for name in names}
    return Limits(*(int(value[1]) if value else 0 for value in values.values()))


def ctas_per_core(resources: Resources, limits: Limits) -> int:
    """CTAs that fit on a core at once, as CUDA's occupancy calculator counts."""
    warps = -(-resources.threads // 32)
    warp_registers = -(-resources.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    return min(
        limits.registers // (warps * warp_registers),
        limits.threads // (warps * 32),
        limits.smem_bytes // (resources.smem_bytes + SYSTEM_SMEM),
        MAX_CTAS,
    )
