"""The rotary settings of a config.json, in both of transformers' spellings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jbatch.config import RopeConfig
from jbatch.model_dir.strict_json import agreed, bool_field, float_field, int_field, refuse, same, shown_key

_KEYS = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor",
    "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate",
    "partial_rotary_factor", "finetuned",
}  # fmt: skip
_WHY_NOT = {
    "dynamic": "its frequencies depend on how long the sequence is by now, so cached keys would turn wrong",
    "longrope": "its frequencies depend on how long the sequence is by now, so cached keys would turn wrong",
}


def parse_rope(raw: Mapping[str, Any], max_len: int) -> RopeConfig:
    """The rotary embedding that a config.json describes: by rope_theta and rope_scaling, or by
    transformers 5's rope_parameters, which holds both.

    Args:
      max_len: the model's max_position_embeddings.

    Raises:
      ConfigError: for settings that are missing, malformed or not implemented, naming the field.
    """
    given = _settings(raw)
    if "rope_theta" in raw:
        given["rope_theta"] = agreed("rope_theta", raw["rope_theta"], given.get("rope_theta"))
    theta = float_field(given, "rope_theta", low=1.0001, high=1e15, default=10000.0)
    kind = agreed("rope_type", given.get("rope_type"), given.get("type"))
    if kind is None and given.keys() - {"rope_theta", "partial_rotary_factor"}:
        refuse("rope_type", None, "missing, though other rotary settings are given")
    if kind is None or kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", _factor(given))
    original = agreed(
        "original_max_position_embeddings",
        raw.get("original_max_position_embeddings"),
        given.get("original_max_position_embeddings"),
    )
    given["original_max_position_embeddings"] = max_len if original is None else original
    if kind == "llama3":
        return _llama3(given, theta)
    if kind == "yarn":
        if given.get("factor") is None and original is not None:
            given["factor"] = max_len / int_field(given, "original_max_position_embeddings", high=2**27)
        return _yarn(given, theta)
    why = _WHY_NOT.get(str(kind), "jbatch implements default, linear, llama3, yarn")
    refuse("rope_type", kind, f"not implemented: {why}")


def _settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the rotary settings, whichever key holds them (or both): names to plain values."""
    settings: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        given = {} if raw.get(name) is None else raw[name]
        if not isinstance(given, dict):
            refuse(name, given, "must be an object or null")
        for key, value in given.items():
            if isinstance(value, dict | list):
                refuse(
                    f"{name}.{shown_key(key)}", value, "lists, and settings per layer, are not implemented"
                )
            if key not in _KEYS and value is not None:
                refuse(
                    f"{name}.{shown_key(key)}", value, "unknown to jbatch, so it may change the mathematics"
                )
            settings[key] = agreed(key, settings.get(key), value)
    if not any(same(settings.get("partial_rotary_factor"), neutral) for neutral in (None, 1, 1.0)):
        refuse(
            "partial_rotary_factor", settings["partial_rotary_factor"], "not implemented; jbatch supports 1"
        )
    return settings


def _factor(given: Mapping[str, Any]) -> float:
    return float_field(given, "factor", low=1.0, high=1e6)


def _llama3(given: Mapping[str, Any], theta: float) -> RopeConfig:
    low = float_field(given, "low_freq_factor", low=1e-6, high=1e6)
    high = float_field(given, "high_freq_factor", low=1e-6, high=1e6)
    if low >= high:
        refuse("high_freq_factor", high, f"must be above low_freq_factor={low}")
    original = int_field(given, "original_max_position_embeddings", high=2**27)
    return RopeConfig(theta, "llama3", _factor(given), original, low, high)


def _yarn(given: Mapping[str, Any], theta: float) -> RopeConfig:
    given = {key: value for key, value in given.items() if value is not None or key == "truncate"}
    beta_fast = float_field(given, "beta_fast", low=1e-6, high=1e6, default=32.0)
    beta_slow = float_field(given, "beta_slow", low=1e-6, high=1e6, default=1.0)
    if beta_fast < beta_slow:
        refuse("beta_fast", beta_fast, f"must be at least beta_slow={beta_slow}")
    factor = _factor(given)
    return RopeConfig(
        theta,
        "yarn",
        factor,
        original_max_len=int_field(given, "original_max_position_embeddings", high=2**27),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=_attention_factor(given, factor),
        truncate=bool_field(given, "truncate", default=True),
    )


def _attention_factor(given: Mapping[str, Any], factor: float) -> float:
    """YaRN's attention factor: as given, or from the two mscales, or the paper's 0.1 ln(factor) + 1."""

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0

    mscale = float_field(given, "mscale", low=0.0, high=1e3, default=0.0)
    mscale_all_dim = float_field(given, "mscale_all_dim", low=0.0, high=1e3, default=0.0)
    derived = scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)
    return float_field(given, "attention_factor", low=1e-6, high=1e6, default=derived)
