"""Verdicts in a directory: a file for each device, driver, jax, set of kernels and shape."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib

import pallas_kernels
from jbatch.device.verdict.record import Verdict
from pallas_kernels.problem import Problem

SCHEMA = 1


class Key(NamedTuple):
    """What a verdict holds for."""

    gpus: str  # with their driver
    jax: str
    kernels: str  # a digest of their sources
    problems: tuple[Problem, ...]

    @classmethod
    def here(cls, gpus: str, problems: tuple[Problem, ...]) -> Key:
        """With the jax and the kernels of this process."""
        return cls(gpus, f"{jax.__version__}, jaxlib {jaxlib.__version__}", kernels_digest(), problems)

    def path(self, directory: Path) -> Path:
        """Where its verdict is kept."""
        return directory / f"{hashlib.sha256(json.dumps(self).encode()).hexdigest()[:20]}.json"

    @property
    def shape(self) -> str:
        """The problems in a few words."""
        first = self.problems[0]
        heads = f"{first.num_heads} heads over {first.kv_heads} of {first.head_dim}"
        parts = [first.dtype, heads, f"pages of {first.page_size}"]
        for kind, what in (("decode", "slots"), ("prefill", "tokens")):
            sizes = [str(problem.tokens) for problem in self.problems if problem.kind == kind]
            parts += [f"{' and '.join(sizes)} {what}"] if sizes else []
        return ", ".join(parts)


@functools.cache
def kernels_digest() -> str:
    """Of all that decides what kernels compute, and how they are checked."""
    root = Path(pallas_kernels.__file__).parent
    digest = hashlib.sha256()
    for file in sorted([*root.rglob("*.py"), *root.glob("*.json")]):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def read(key: Key, directory: Path | None) -> Verdict | None:
    """The verdict that is kept for a key; None where there is none, or a file that is something else."""
    if directory is None:
        return None
    found = _load(key.path(directory))
    return found[1] if found is not None and found[0] == key else None


def read_or_make(key: Key, directory: Path | None, make: Callable[[], Verdict]) -> Verdict:
    """The verdict that is kept for a key, or one made now. Of several processes at once, one makes it and the
    others wait for it.

    Kept is what would come out the same another time. A directory that cannot be used keeps nothing.
    """
    if directory is None:
        return make()
    with _locked(key.path(directory).with_suffix(".lock")):
        verdict = read(key, directory)
        if verdict is None:
            verdict = make()
            if verdict.lasts:
                with contextlib.suppress(OSError, ValueError):
                    _write(key, verdict, directory)
    return verdict


def read_all(directory: Path) -> list[tuple[Key, Verdict]]:
    """Every verdict in a directory that the jax and the kernels of this process would use."""
    try:
        paths = sorted(directory.glob("*.json"))
    except (OSError, ValueError):
        return []
    found = [entry for path in paths if (entry := _load(path)) is not None]
    return [(key, verdict) for key, verdict in found if key == Key.here(key.gpus, key.problems)]


def _load(path: Path) -> tuple[Key, Verdict] | None:
    try:
        value: Any = json.loads(path.read_bytes())
        if value["schema"] != SCHEMA:
            return None
        gpus, jax_version, kernels, problems = value["key"]
        key = Key(gpus, jax_version, kernels, tuple(Problem(*problem) for problem in problems))
        return key, Verdict.of_json(value["verdict"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(key: Key, verdict: Verdict, directory: Path) -> None:
    """The file is there whole or not at all."""
    text = json.dumps({"schema": SCHEMA, "key": key, "verdict": verdict.as_json()}, indent=1)
    handle, temporary = tempfile.mkstemp(dir=directory, suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(temporary, key.path(directory))
    except BaseException:  # an interrupt included
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, which goes with this process however it ends; none where no file can be made."""
    import fcntl  # not on every system

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in its name
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
