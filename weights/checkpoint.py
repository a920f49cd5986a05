"""Converted weights: an Orbax checkpoint beside the model's config and tokenizer, under one manifest."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from weights import manifest
from weights.errors import WeightsError, raise_if_any
from weights.hugging_face import Form

PARAMS = "params"
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def save(
    out_dir: str | Path,
    params: Mapping[str, jax.Array],
    model_dir: str | Path,
    replaced: Mapping[str, str] | None = None,
) -> None:
    """Write `params` and the config and tokenizer files of `model_dir` into the new directory `out_dir`.

    It appears whole or not at all. `replaced`: file name -> text to write instead of that file's copy.
    Raises WeightsError if `out_dir` exists and is not empty, and OSError, naming it, where it cannot be
    written.
    """
    target = Path(out_dir).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise WeightsError(f"{target}: exists and is not an empty directory")
    with _staged(target) as staging:
        with _system_errors(target), _checkpointer() as checkpointer:
            checkpointer.save(staging / PARAMS, dict(params))
        for name in COPIED:
            if (Path(model_dir) / name).is_file():
                shutil.copyfile(Path(model_dir) / name, staging / name)
        for name, text in (replaced or {}).items():
            (staging / name).write_text(text, encoding="utf-8")
        manifest.write(staging, {name: [str(leaf.dtype), *leaf.shape] for name, leaf in params.items()})


def load_checkpoint(
    model_dir: str | Path,
    like: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, Any] | None = None,
    forms: Mapping[str, Form] | None = None,
) -> dict[str, jax.Array]:
    """The parameters named by `like`, in its order, shapes and dtypes, from a directory `save` wrote.

    Those that have a form, see `load`, are on the host together before they are moved.

    Raises WeightsError, naming files or parameters, if any bit of the directory has changed, or if the
    parameters are not those of `like`.
    """
    check_checkpoint(model_dir, like)
    root = Path(model_dir).absolute()
    shardings = shardings or {}
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    where = {name: shardings.get(name) or leaf.sharding or default for name, leaf in like.items()}
    forms = forms or {}

    def how(name: str, leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if name in forms:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(dtype=leaf.dtype, sharding=where[name])

    restore_args = {name: how(name, leaf) for name, leaf in like.items()}
    with _checkpointer() as checkpointer:
        args = ocp.args.PyTreeRestore(item=dict(like), restore_args=restore_args)
        restored = checkpointer.restore(root / PARAMS, args=args)
    for name, form in forms.items():
        restored[name] = jax.block_until_ready(jax.device_put(form(restored[name]), where[name]))
    return {name: restored[name] for name in like}


def check_checkpoint(model_dir: str | Path, like: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raise WeightsError as loading would, without loading: every file is hashed."""
    root = Path(model_dir).absolute()
    raise_if_any(root, _problems(manifest.verify(root), like))


def _problems(stored: Mapping[str, Any], like: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    problems = [f"parameter {name} is missing" for name in like if name not in stored]
    problems += [f"parameter {name} is unexpected" for name in stored if name not in like]
    for name, leaf in like.items():
        shape = stored.get(name, ["", *leaf.shape])[1:]
        if tuple(shape) != leaf.shape:
            problems.append(f"parameter {name} has shape {shape}, expected {list(leaf.shape)}")
    return problems


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A directory beside `target` that takes its place on success and is removed on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # of a killed process that had this id
    staging.mkdir()
    try:
        if target.exists():  # and is empty
            before = target.stat()
            os.chown(staging, before.st_uid, before.st_gid)
            staging.chmod(before.st_mode & 0o7777)
        yield staging
        staging.rename(target)  # replaces an empty directory, nothing else
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def _system_errors(target: Path) -> Iterator[None]:
    """Orbax's writer says what the system refused, as on a full disk, in the text of a ValueError."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(target)) from error


def _checkpointer() -> ocp.Checkpointer:
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1, restore_concurrent_gb=1)  # of host memory
    return ocp.Checkpointer(handler)
