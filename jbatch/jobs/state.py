"""What a job's results depend on, kept beside its output, so that no other job goes on with it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jbatch.errors import ConfigError
from jbatch.jobs.files import read_own, replacing

SCHEMA = 1
SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".model", ".txt"})  # of a model's files
WHOLE_BELOW = 2**24  # bytes: larger files are sampled
NUM_SAMPLES, SAMPLE_BYTES = 64, 2**16
OF_MODEL = ("room", "numerics")  # fields that are known once the model is loaded
OF_NO_TEXT = ("input_file",)  # fields that no result depends on


@dataclasses.dataclass(frozen=True)
class JobState:
    """Everything that another text could come from. Batch size and number of pages are not part of it: within
    one bucket they change nothing, and between buckets the last bits."""

    input: str  # sha256
    shard: str
    model: dict[str, str]  # file name -> size and digest
    engine: dict[str, Any]  # seed, dtype, max_model_len, load_format
    sampling: dict[str, Any]  # defaults of the lines, where they are not jbatch's own
    room: int | None = None  # tokens of a line without max_tokens, prompt included; known with the model
    numerics: dict[str, Any] | None = None  # device, versions, what JAX is told; known with the model
    input_file: str | None = None  # where the input was, where that is a file: for `jbatch merge`


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
    """Write the state beside the output, unless it is there. Raises OSError."""
    content = {"schema": SCHEMA, **dataclasses.asdict(state)}
    raw = json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"
    path = state_path(output_path)
    if read_own(path) != raw:
        with replacing(path) as file:
            file.write(raw)


def check_own(output_path: str) -> None:
    """Raise ConfigError where a file of the state's name is none: it would be overwritten."""
    raw = read_own(state_path(output_path))
    if raw and _parse(raw) is None:
        name = os.path.basename(state_path(output_path))
        raise ConfigError("output", output_path, f"{name} is not jbatch's: move it, or --force to replace it")


def check_state(output_path: str, state: JobState) -> JobState:
    """The state with what is known of it only once the model is loaded, from the results that are there.

    Raises:
      ConfigError: where the results of the output come from another state than this, naming what differs.
    """
    before = _load_state(output_path)
    if before is None:
        raise ConfigError(
            "output",
            output_path,
            f"holds results, and {os.path.basename(state_path(output_path))} does not say of what job: "
            "take another output, or --force",
        )
    now = json.loads(json.dumps(dataclasses.asdict(state)))  # as it is read back
    _check_same(output_path, before, {name: now[name] for name in now if name not in OF_MODEL + OF_NO_TEXT})
    return dataclasses.replace(state, room=before.get("room"), numerics=before.get("numerics"))


def load_state(output_path: str) -> JobState:
    """The state beside an output. Raises ConfigError where there is none."""
    content = _load_state(output_path)
    if content is None or not all(isinstance(content.get(name), str) for name in ("input", "shard")):
        name = os.path.basename(state_path(output_path))
        raise ConfigError("output", output_path, f"{name} is not there, or no job's: no output of a job")
    fields: dict[str, Any] = {field.name: content.get(field.name) for field in dataclasses.fields(JobState)}
    return JobState(**fields)


def differences(one: JobState, other: JobState, between: str) -> list[str]:
    """What the results of two shards of a job must have in common and do not, as texts: the other's value,
    and the one's. What only some lines need is compared where both have it.

    Args:
      between: what stands before the one's value.
    """
    fields = [field.name for field in dataclasses.fields(JobState) if field.name not in OF_NO_TEXT]
    pairs: dict[str, tuple[Any, Any]] = {
        name: (getattr(other, name), getattr(one, name)) for name in fields if name != "shard"
    }
    both = {name: pair for name, pair in pairs.items() if name not in OF_MODEL or None not in pair}
    return [text for name, pair in both.items() for text in _changes(name, *pair, between)]


def keep_of_model(output_path: str, state: JobState, room: int | None, numerics: dict[str, Any]) -> None:
    """Write into the state beside an output what is known once the model is loaded.

    Args:
      room: for lines without max_tokens; None where there are none.

    Raises:
      ConfigError: where the results that are there come from another, naming what differs.
    """
    before = _load_state(output_path) or {}
    before_room, before_numerics = before.get("room"), before.get("numerics")
    if room is not None and before_room not in (None, room):
        raise ConfigError(
            "output",
            output_path,
            f"was begun where lines without max_tokens had room for {before_room} tokens, prompt included; "
            f"now the cache and max_model_len have {room}. Take another output, or --force to go on",
        )
    if isinstance(before_numerics, dict):
        _check_same(output_path, {"numerics": before_numerics}, {"numerics": numerics})
    room = before_room if room is None else room
    save_state(output_path, dataclasses.replace(state, room=room, numerics=numerics))


def _load_state(output_path: str) -> dict[str, Any] | None:
    return _parse(read_own(state_path(output_path)) or b"")


def _parse(raw: bytes) -> dict[str, Any] | None:
    """A state of this schema; None for anything else."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    is_state = isinstance(content, dict) and content.get("schema") == SCHEMA and "input" in content
    return content if is_state else None


def _check_same(output_path: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    changes = [text for field in now for text in _changes(field, before.get(field), now[field])]
    if changes:
        raise ConfigError(
            "output",
            output_path,
            f"was begun with another {'; another '.join(changes)}. Take another output, or --force to go on",
        )


def _changes(field: str, before: Any, now: Any, between: str = "now") -> list[str]:
    """What changed in one field, as text."""
    if not isinstance(now, dict) or not isinstance(before, dict):
        return [] if before == now else [f"{field} ({str(before)[:12]}, {between} {str(now)[:12]})"]
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if field == "model" and names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return [f"model ({', '.join(names[:3])}{more})"]
    return [f"{name} ({_shown(before.get(name))}, {between} {_shown(now.get(name))})" for name in names]


def _shown(value: Any) -> str:
    return "default" if value is None else str(value)
