"""What a path that is no model directory is instead, and what would do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from jbatch.errors import ConfigError
from jbatch.model_dir.shapes import RUNNABLE

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
UNREAD_TOKENIZERS = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json")
MERGE_ADAPTER = "merge it into its base model (peft: merge_and_unload, then save_pretrained)"
CONVERT_META = "convert it with transformers' convert_llama_weights_to_hf.py"
UNREAD_SUFFIXES = {
    ".gguf": "GGUF",
    ".ggml": "GGML",
    ".pth": "a pickle",
    ".pt": "a pickle",
    ".bin": "a pickle",
}
MAX_ADAPTER_BYTES = 2**20  # of adapter_config.json
MAX_LISTED = 4096  # entries of a directory that are looked at


def check_model_dir(path: str | Path) -> None:
    """Raise ConfigError for what is no Hugging Face model directory, saying what it is and what would do."""
    path = Path(path)
    if path.is_dir():
        if not (path / CONFIG).exists():
            _refuse(path, f"no {CONFIG}: no Hugging Face model directory{_what_is_in(path)}")
    elif path.exists():
        _refuse(path, _what_file(path))
    else:
        _refuse(path, f"no such directory{_where_it_may_be(path)}")


def check_tokenizer_dir(path: str | Path) -> None:
    """Raise ConfigError for what is no directory with a tokenizer.json, saying what would do."""
    path = Path(path)
    if path.is_dir():
        reason = why_no_tokenizer(path)
    else:
        reason = _what_file(path) if path.exists() else f"no such directory{_where_it_may_be(path)}"
    if reason is not None:
        raise ConfigError("tokenizer", str(path), reason)


def why_no_tokenizer(model_dir: str | Path) -> str | None:
    """Why text prompts do not work with a model directory, and what would do; None where they do."""
    if (Path(model_dir) / TOKENIZER).exists():
        return None
    other = unread_tokenizer(model_dir)
    return f"has no {TOKENIZER}: it takes token ids, in Python and in JSONL" if other is None else other


def unread_tokenizer(model_dir: str | Path) -> str | None:
    """What to do where a directory has a tokenizer, but none that is read; None where that is not so."""
    if (Path(model_dir) / TOKENIZER).exists():
        return None
    found = next((name for name in UNREAD_TOKENIZERS if (Path(model_dir) / name).exists()), None)
    if found is None:
        return None
    make = f"AutoTokenizer.from_pretrained({str(model_dir)!r}).save_pretrained({str(model_dir)!r})"
    return f"has {found} but no {TOKENIZER}: make one with transformers' {make}"


def _refuse(path: Path, reason: str) -> NoReturn:
    raise ConfigError("model", str(path), reason)


# Each of the following begins with what stands between "no such thing" and the hint, or is empty.


def _what_is_in(folder: Path) -> str:
    """What a directory without config.json has instead."""
    names = sorted(path.name for path, _ in zip(folder.iterdir(), range(MAX_LISTED), strict=False))
    if not names:
        return "; it is empty"
    if "adapter_config.json" in names:
        return f"; it is a LoRA adapter{_of_base(folder)}: {MERGE_ADAPTER}"
    if "params.json" in names:
        weights = next((name for name in names if name.startswith("consolidated.")), "params.json")
        return f"; {weights} is Meta's or Mistral's own form of a model: {CONVERT_META}, or take the -hf one"
    if "snapshots" in names and (snapshot := _snapshot_of(folder)) is not None:
        return f"; it is a repository of the hub cache: give {snapshot}"
    for suffix, form in UNREAD_SUFFIXES.items():
        if (found := next((name for name in names if name.endswith(suffix)), None)) is not None:
            return f"; {found} is {form}, which is not read: give the directory of the safetensors"
    inside = [name for name in names if (folder / name / CONFIG).is_file()]
    if inside:
        more = f" (one of {len(inside)})" if len(inside) > 1 else ""
        return f"; one is in it: give {folder / inside[-1]}{more}"
    return f"; there is {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _of_base(folder: Path) -> str:
    try:
        with (folder / "adapter_config.json").open("rb") as file:
            base = json.loads(file.read(MAX_ADAPTER_BYTES)).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return f" of {base[:80]}" if isinstance(base, str) and base.isprintable() and base else ""


def _what_file(path: Path) -> str:
    if path.suffix in UNREAD_SUFFIXES:
        form = UNREAD_SUFFIXES[path.suffix]
        return f"{form} is not read: give the directory of the safetensors"
    if (path.parent / CONFIG).is_file():
        return f"is a file: give its directory, {path.parent}"
    return "is a file: give the directory of the model"


def _where_it_may_be(path: Path) -> str:
    """Where a path may lead that is not there: a home directory, or a hub id."""
    home = os.path.expanduser(path)
    if Path(home).is_dir():
        return f"; give {home}"
    name = str(path)
    if name in RUNNABLE:
        return "; it names a shape, for jbatch plan and jbatch bench: give a model's directory"
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) is None:
        return ""
    if (snapshot := _cached(name)) is not None:
        return f"; the hub cache has a snapshot of this id: give {snapshot}"
    return f"; for a hub id: hf download {name} --local-dir DIR, then give DIR (jbatch downloads nothing)"


def _cached(hub_id: str) -> Path | None:
    """The snapshot of a hub id in the local cache, if it is there."""
    for cache in _hub_caches():
        repository = cache / f"models--{hub_id.replace('/', '--')}"
        if repository.is_dir() and (snapshot := _snapshot_of(repository)) is not None:
            return snapshot
    return None


def _hub_caches() -> Iterator[Path]:
    """Where huggingface_hub keeps what it downloads, by its environment variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    yield Path(os.environ.get("HF_HOME") or cache).expanduser() / "hub"


def _snapshot_of(repository: Path) -> Path | None:
    """The snapshot that a repository of the hub cache calls main, or its newest; None without config.json."""
    try:
        revision = (repository / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        revision = ""
    snapshots = repository / "snapshots"
    if revision and (snapshots / revision / CONFIG).is_file():
        return snapshots / revision
    others = [path for path in snapshots.glob("*") if (path / CONFIG).is_file()]
    return max(others, key=lambda path: path.stat().st_mtime, default=None)
