"""What a job's results depend on, kept beside its output, so that no other job goes on with it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jbatch.errors import ConfigError
from jbatch.jobs.files import replacing

SCHEMA = 1
SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".model", ".txt"})  # of a model's files
WHOLE_BELOW = 2**24  # bytes: larger files are sampled
NUM_SAMPLES, SAMPLE_BYTES = 64, 2**16


@dataclasses.dataclass(frozen=True)
class JobState:
    """Everything that another text could come from. Batch size, device and kernels are not part of it: a job
    may go on on another machine."""

    input: str  # sha256
    shard: str
    model: dict[str, str]  # file name -> size and digest
    engine: dict[str, Any]  # seed, dtype, max_model_len, load_format
    sampling: dict[str, Any]  # defaults of the lines, where they are not jbatch's own
    room: int | None = None  # tokens of a line without max_tokens, prompt included; known with the model


def fingerprint(model_dir: str | Path) -> dict[str, str]:
    """Size and digest of each file that a model is read from. Of large ones, 64 blocks are read: their header
    and weights from all over the file, not gigabytes."""
    paths = sorted(path for path in Path(model_dir).iterdir() if path.suffix in SUFFIXES and path.is_file())
    return {path.name: f"{path.stat().st_size}:{_digest(path)}" for path in paths}


def _digest(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= WHOLE_BELOW:
            digest.update(file.read())
        else:
            for number in range(NUM_SAMPLES):
                file.seek((size - SAMPLE_BYTES) * number // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def state_path(output_path: str) -> str:
    return f"{output_path}.job.json"


def save_state(output_path: str, state: JobState) -> None:
    """Write the state beside the output. Raises OSError."""
    content = {"schema": SCHEMA, **dataclasses.asdict(state)}
    with replacing(state_path(output_path)) as file:
        file.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")


def check_state(output_path: str, state: JobState) -> None:
    """Raise ConfigError where the results of the output come from another state than this, naming what
    differs."""
    before = _load_state(output_path)
    if before is None:
        raise ConfigError(
            "output",
            output_path,
            f"holds results, and {os.path.basename(state_path(output_path))} does not say of what job: "
            "take another output, or --force",
        )
    now = json.loads(json.dumps(dataclasses.asdict(state)))  # as it is read back
    del now["room"]  # see keep_room
    changes = [
        text for field in now for text in _changes(field, before.get(field), now[field])
    ]  # of all fields
    if changes:
        raise ConfigError(
            "output",
            output_path,
            f"was begun with another {'; another '.join(changes)}. Take another output, or --force to go on",
        )


def known_room(output_path: str) -> int | None:
    """The room that the state beside an output names, if any."""
    return (_load_state(output_path) or {}).get("room")


def keep_room(output_path: str, state: JobState, room: int) -> None:
    """Write the room into the state beside an output. Raises ConfigError where another is there: then results
    of lines without max_tokens end elsewhere."""
    before = known_room(output_path)
    if before not in (None, room):
        raise ConfigError(
            "output",
            output_path,
            f"was begun where lines without max_tokens had room for {before} tokens, prompt included; now "
            f"the cache and max_model_len have {room}. Take another output, or --force to go on",
        )
    if before is None:
        save_state(output_path, dataclasses.replace(state, room=room))


def _load_state(output_path: str) -> dict[str, Any] | None:
    try:
        content = json.loads(Path(state_path(output_path)).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return None
    return content


def _changes(field: str, before: Any, now: Any) -> list[str]:
    """What changed in one field, as text."""
    if not isinstance(now, dict) or not isinstance(before, dict):
        return [] if before == now else [f"{field} ({str(before)[:12]}, now {str(now)[:12]})"]
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if field == "model" and names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return [f"model ({', '.join(names[:3])}{more})"]
    return [f"{name} ({_shown(before.get(name))}, now {_shown(now.get(name))})" for name in names]


def _shown(value: Any) -> str:
    return "default" if value is None else str(value)
