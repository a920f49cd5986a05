"""A manifest of a directory: every file's size and sha256, so that one flipped bit anywhere is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from weights import strict_json
from weights.errors import WeightsError, raise_if_any

FILE = "manifest.json"
SCHEMA = 1


def is_checkpoint(model_dir: str | Path) -> bool:
    """Whether the directory holds converted weights: they are known by their manifest."""
    return (Path(model_dir) / FILE).is_file()


def write(root: Path, params: dict[str, Any]) -> None:
    """Write root/manifest.json over all files below `root`, with `params`: name -> [dtype, *shape]."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in sorted(_files(root).items())
    }
    content = {"schema": SCHEMA, "params": params, "files": files}
    (root / FILE).write_bytes(_signed(content))


def verify(root: Path) -> dict[str, Any]:
    """The manifest's params, after every file below `root` was found to be as it was written. Raises
    WeightsError naming the files that are missing, changed, or not in the manifest."""
    content = _read(root / FILE)
    expected, found = content["files"], _files(root)
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not in {FILE}" for name in found.keys() - expected.keys()]
    raise_if_any(root, sorted(problems))
    changed = [
        f"{name} has changed since {FILE} was written"
        for name, path in sorted(found.items())
        if expected[name] != {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    ]
    raise_if_any(root, changed)
    return content["params"]


def _read(path: Path) -> dict[str, Any]:
    content = strict_json.read(path)
    content.pop("sha256", None)
    if path.read_bytes() != _signed(content):  # its own checksum, and nothing else than what `write` writes
        raise WeightsError(f"{path.name}: damaged, or not written by jbatch")
    if content.get("schema") != SCHEMA:
        raise WeightsError(f"{path.name}: schema {content.get('schema')!r}, this version reads {SCHEMA}")
    return content


def _signed(content: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def _files(root: Path) -> dict[str, Path]:
    """Every file below `root` by relative name, `FILE` excepted; links and devices are refused."""
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_symlink() or not p.is_dir()}
    found.pop(FILE, None)
    links = [name for name, path in found.items() if path.is_symlink() or not path.is_file()]
    raise_if_any(root, [f"{name} is not a regular file" for name in sorted(links)])
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
