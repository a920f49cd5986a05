"""The sampling values of a model's generation_config.json: what its requests get where they name no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jbatch.config import GenerationConfigName
from jbatch.errors import ConfigError, RequestError
from jbatch.model_dir.strict_json import read_optional, refuse
from jbatch.sampling_params import SamplingParams, UpTo

FILE_NAME = "generation_config.json"
# The keys that vLLM takes, and what they are called here. It looks at no other: not at do_sample, which
# says whether transformers samples at all, nor at max_length, which counts the prompt, too.
_KEYS = {
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}


def load_sampling_defaults(model_dir: str | Path, source: GenerationConfigName) -> dict[str, Any]:
    """Sampling parameters for requests that leave them out, as far as a model's generation_config.json names
    others than jbatch's own; none for source "jbatch", and where there is no such file.

    Raises:
      ConfigError: for a file that cannot be read, and for a value that SamplingParams refuses.
    """
    if source == "jbatch":
        return {}
    raw = read_optional(Path(model_dir) / FILE_NAME)
    own = SamplingParams()
    defaults = {name: _value(raw, key, name) for key, name in _KEYS.items() if raw.get(key) is not None}
    return {name: value for name, value in defaults.items() if value != getattr(own, name)}


def describe_defaults(defaults: Mapping[str, Any]) -> str:
    """Sampling parameters as one line to read, such as "temperature=0.6, top_p=0.9"."""
    return ", ".join(f"{name}={value}" for name, value in sorted(defaults.items()))


def describe_model_defaults(defaults: Mapping[str, Any]) -> str:
    """A line that says which sampling parameters the model has set."""
    return f"from the model's {FILE_NAME}, where not set: {describe_defaults(defaults)}"


def _value(raw: Mapping[str, Any], key: str, name: str) -> Any:
    try:
        value = getattr(SamplingParams(**{name: raw[key]}), name)
    except RequestError as error:
        without = 'generation_config="jbatch", or --generation-config jbatch, takes none of its values'
        reason = f"{error.reason} (in {FILE_NAME}; {without})"
        refuse(key, error.value, reason)
    if name != "max_tokens":
        return value
    if value < 1:
        raise ConfigError(key, value, f"must be at least 1 (in {FILE_NAME})")
    return UpTo(value)
