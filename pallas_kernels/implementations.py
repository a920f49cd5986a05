"""Which implementation computes a problem, and why not another.

"xla" is plain JAX: `reference`, on a CPU `cpu`, and `cache`. Every other name is that of a folder, whose
files hold

    __init__    declines_device
    decode      declines, Tiles, default_tiles, paged_decode
    prefill     declines, Tiles, default_tiles, tile_tokens, paged_prefill
    rotate      declines, rotate_and_write; not in every folder

with the signatures of those that are there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from pallas_kernels.names import NAMES
from pallas_kernels.problem import Kind, Problem


class Choice(NamedTuple):
    """The implementation of a problem, and why those tried before it do not take it."""

    name: str
    declined: dict[str, str]


def choose(
    problem: Problem,
    implementation: str | Sequence[str] | None = None,
    device: Any = None,
) -> Choice:
    """The first implementation that takes the problem.

    Args:
      implementation: a name, several in order of preference, or None for plain JAX.
      device: a `jax.Device` that the kernel must run on as it is; None where it is interpreted, or where
        nothing but the problem matters.

    Raises:
      ValueError: for an unknown name, and where all decline, with each one's reason.
    """
    names = _names(implementation)
    declined: dict[str, str] = {}
    for name in names:
        reason = declines(name, problem, device)
        if reason is None:
            return Choice(name, declined)
        declined[name] = reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in declined.items())
    raise ValueError(f"no implementation takes this {problem.kind} problem ({reasons})")


def declines(name: str, problem: Problem, device: Any = None) -> str | None:
    """Why an implementation does not take a problem on a device, or None."""
    if name == "xla":
        return None
    if device is not None and (reason := declines_device(name, device)):
        return reason
    if importlib.util.find_spec(f"pallas_kernels.{name}.{problem.kind}") is None:
        return "has no such kernel"
    return module(name, problem.kind).declines(problem)


def module(name: str, kind: Kind) -> ModuleType:
    """The file of a kernel, in its compiler's folder; imported when it is needed, since not every jax has
    every backend."""
    return importlib.import_module(f"pallas_kernels.{name}.{kind}")


def _names(implementation: str | Sequence[str] | None) -> tuple[str, ...]:
    if implementation is None:
        return ("xla",)
    names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    if not names or any(name not in NAMES for name in names):
        raise ValueError(f"implementation={implementation!r}: choose from {', '.join(NAMES)}")
    return names


def declines_device(name: str, device: Any) -> str | None:
    """Why the kernels of a folder do not run on a device, whatever the problem, or None."""
    capability = compute_capability(device)
    if not capability:
        return f"device {device.platform}: an NVIDIA GPU only, unless interpreted"
    return importlib.import_module(f"pallas_kernels.{name}").declines_device(capability)


def compute_capability(device: Any) -> str:
    """Such as "9.0"; empty for what is no NVIDIA GPU."""
    return str(getattr(device, "compute_capability", "")) if device.platform in ("gpu", "cuda") else ""
