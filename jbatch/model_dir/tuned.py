"""Options of an engine that `jbatch tune` found, in a file of plain data.

They stand in the place of defaults: what a user says wins. A file that was made for another model is refused.
One of another version or device holds options that work and may not be the best there: that is said.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jbatch.config import EngineConfig, ModelConfig
from jbatch.errors import ConfigError, JBatchError
from jbatch.model_dir.data_file import Kind, read_data_file

# Of a model: what its steps cost depends on them.
SIZES = "vocab_size", "embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim"
OPTIONS = (
    *("max_num_seqs", "max_num_batched_tokens", "page_size", "policy", "admission", "predictor"),
    *("decode_buckets", "token_buckets"),
)
# Tuned options that another value of a user's makes void: they were chosen beside the tuned one.
VOID = {
    "max_num_seqs": ("decode_buckets",),
    "max_num_batched_tokens": ("token_buckets",),
    "page_size": ("token_buckets", "max_num_batched_tokens"),
    "max_model_len": ("token_buckets",),
}


class TunedError(JBatchError, ValueError):
    """A file of tuned options that cannot be read, or is of another model: names file and entry."""


KIND = Kind("tuned", 1, "file of tuned options", "jbatch tune", TunedError)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was found, and for what.

    Attributes:
      options: for LLM, by name.
      model: the model's sizes, by their names in ModelConfig.
      device: what JAX calls it.
      version: of jbatch.
      about: for people: workload, aim, costs, and what was predicted.
    """

    options: Mapping[str, Any]
    model: Mapping[str, int]
    device: str
    version: str
    about: Mapping[str, Any]

    def write(self, path: str | Path) -> None:
        """As JSON, for `read_tuned`."""
        document = {"schema": KIND.schema, "kind": KIND.name} | dataclasses.asdict(self)
        Path(path).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_tuned(path: str | Path) -> Tuned:
    """What `Tuned.write` wrote. Raises TunedError, naming the file and the entry."""
    document = read_data_file(path, KIND)
    options, model = document.get("options"), document.get("model")
    if not isinstance(options, dict) or not isinstance(model, dict):
        raise TunedError(f"{path}: options and model must be objects")
    for name in options:
        if name not in OPTIONS:
            raise TunedError(f"{path}: options: {name!r:.60} is none that is tuned: {', '.join(OPTIONS)}")
    for name in SIZES:
        if type(model.get(name)) is not int:
            raise TunedError(f"{path}: model.{name}={model.get(name)!r:.60}: must be an integer")
    for name in ("device", "version"):
        if not isinstance(document.get(name), str):
            raise TunedError(f"{path}: {name}={document.get(name)!r:.60}: must be text")
    try:
        EngineConfig(**options)
    except ConfigError as error:
        raise TunedError(f"{path}: options: {error}") from None
    about = document.get("about", {})
    return Tuned(
        options, model, document["device"], document["version"], about if isinstance(about, dict) else {}
    )


def with_tuned(options: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's options, and beside them those of the file that `tuned` names, which they lack.

    Raises TunedError for a file that holds none, and ConfigError for what is no path.
    """
    if options.get("tuned") is None:
        return dict(options)
    if not isinstance(options["tuned"], (str, Path)):
        raise ConfigError("tuned", options["tuned"], "must be the path of a file of jbatch tune")
    found = read_tuned(options["tuned"]).options
    other = {name for name, value in options.items() if value is not None and value != found.get(name)}
    void = {name for said in other for name in VOID.get(said, ())}
    return {name: value for name, value in found.items() if name not in void} | dict(options)


def check_tuned(config: EngineConfig, model: ModelConfig) -> None:
    """Raise TunedError where an engine's tuned options are those of another model."""
    if config.tuned is None:
        return
    made_for = read_tuned(config.tuned).model
    for name in SIZES:
        if made_for[name] != getattr(model, name):
            raise TunedError(
                f"{config.tuned}: was made for another model: {name}={made_for[name]} there, and "
                f"{getattr(model, name)} here"
            )


def tuned_doubts(config: EngineConfig, device: str, version: str) -> list[str]:
    """Why an engine's tuned options may not be the best here."""
    if config.tuned is None:
        return []
    tuned = read_tuned(config.tuned)
    pairs = ("device", tuned.device, device), ("version of jbatch", tuned.version, version)
    return [
        f"{config.tuned}: was made for another {name}: {there}, and this is {here}"
        for name, there, here in pairs
        if there != here
    ]
