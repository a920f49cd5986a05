"""Compiling with JAX's cache of programs, and not believing what it gives: a file of it may be another's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import mlir

CompilerOptions = dict[str, Any]
MAX_TRIES = 4
NAMED = re.compile(r"_[0-9a-f]{16}_\d$")


def compile_anew_if_foreign(
    lower: Callable[[], jax.stages.Lowered], options: CompilerOptions | None = None
) -> jax.stages.Compiled:
    """A program, from the cache where it is there.

    It is named by the digest of its text, and the compiler keeps that name: an entry of another name was
    swapped, copied or written by someone else. Then the program is compiled under another name, which the
    cache does not have.
    """
    for attempt in range(MAX_TRIES):
        if attempt:
            jax.clear_caches()  # JAX keeps what it has traced, and what came of it
        lowered = lower()
        name = _rename(lowered, attempt)
        compiled = lowered.compile(options)
        names = _names(compiled)
        if not names or name in names:
            return compiled
        if attempt and not any(map(NAMED.search, names)):
            return compiled  # it cannot be told: this compiler keeps no names
    raise RuntimeError(f"the compilation cache has {MAX_TRIES} wrong programs for one: empty it")


def _rename(lowered: jax.stages.Lowered, attempt: int) -> str:
    module: Any = lowered.compiler_ir()
    before: str = mlir.ir.StringAttr(module.operation.attributes["sym_name"]).value
    base = NAMED.sub("", before)  # one that JAX kept has its name already
    text = str(module).replace(f"@{before} ", f"@{base} ", 1)
    name = f"{base}_{hashlib.sha256(text.encode()).hexdigest()[:16]}_{attempt}"
    with module.context:
        module.operation.attributes["sym_name"] = mlir.ir.StringAttr.get(name)
    return name


def _names(compiled: jax.stages.Compiled) -> list[str]:
    """Those that a program has; none where it was compiled for a device that is not here."""
    executable: Any = compiled.runtime_executable()
    try:
        return [module.name for module in executable.hlo_modules()]
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return []
