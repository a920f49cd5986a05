"""Read a Hugging Face model directory's config.json into a ModelConfig.

Parsed here, not by transformers: `auto_map` never imports code, both spellings of the rotary settings
are understood, and a key that changes the mathematics is implemented, at its neutral value, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.config import DTYPES, ModelConfig
from jbatch.model_dir.config_keys import check_keys, check_restated
from jbatch.model_dir.paths import check_model_dir
from jbatch.model_dir.rope_json import parse_rope
from jbatch.model_dir.strict_json import (
    agreed,
    bool_field,
    float_field,
    int_field,
    read_object,
    read_optional,
    refuse,
)


class _Family(NamedTuple):
    """What transformers assumes of a model_type where a key is absent, and the flags it reads."""

    max_position_embeddings: int
    num_kv_heads: int | None = None  # None: as many as there are heads
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    sliding_window: int | None = None
    qkv_bias: bool = False  # without a flag
    qk_norm: bool = False
    flags: tuple[str, ...] = ()


_QWEN_FLAGS = ("use_sliding_window",)
_FAMILIES = {
    "llama": _Family(2048, flags=("attention_bias", "mlp_bias")),
    "mistral": _Family(131072, num_kv_heads=8, sliding_window=4096),
    "qwen2": _Family(32768, num_kv_heads=32, sliding_window=4096, qkv_bias=True, flags=_QWEN_FLAGS),
    "qwen3": _Family(
        32768,
        num_kv_heads=32,
        head_dim=128,
        sliding_window=4096,
        qk_norm=True,
        flags=("attention_bias", *_QWEN_FLAGS),
    ),
}


def load_config(model_dir: str | Path) -> ModelConfig:
    """The ModelConfig of a Hugging Face model directory.

    Raises ConfigError for what is no such directory, saying what it is, and for whatever is wrong with its
    config.json: unreadable, not JSON, or not a model that jbatch implements."""
    check_model_dir(model_dir)
    return parse_config(read_object(Path(model_dir) / "config.json"))


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig that the contents of a config.json describe.

    Raises ConfigError naming the field for a missing or malformed one, and for anything that changes the
    mathematics and is not implemented. Warns once, naming them, of unknown keys that look harmless.
    """
    family = _family(raw)
    check_keys(raw)
    num_layers = int_field(raw, "num_hidden_layers", high=1000)
    embed_dim = int_field(raw, "hidden_size", high=2**17)
    num_heads, num_kv_heads, head_dim = _heads(raw, family, embed_dim)
    max_len = int_field(raw, "max_position_embeddings", high=2**27, default=family.max_position_embeddings)
    attention_bias = _flag(raw, "attention_bias", family)
    mlp_bias = _flag(raw, "mlp_bias", family)
    config = ModelConfig(
        vocab_size=int_field(raw, "vocab_size", high=2**24),
        embed_dim=embed_dim,
        mlp_dim=int_field(raw, "intermediate_size", high=2**20),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_len,
        rms_norm_eps=float_field(raw, "rms_norm_eps", low=1e-12, high=1.0, default=1e-6),
        rope=parse_rope(raw, max_len),
        tie_word_embeddings=bool_field(raw, "tie_word_embeddings", default=False),
        qkv_bias=family.qkv_bias or attention_bias,
        o_bias=attention_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        dtype=_dtype(raw),
        sliding_window=_sliding_window(raw, family, num_layers),
    )
    check_restated(raw, config)
    return config


def load_eos_token_ids(model_dir: str | Path) -> frozenset[int]:
    """Every end-of-sequence id that config.json and generation_config.json name; the latter may be absent.

    Their union, because Llama 3's chat models name two of their three ids in generation_config.json alone.
    Raises ConfigError for an id outside the vocabulary and for files that cannot be read.
    """
    config, generation = _read_configs(model_dir)
    vocab_size = int_field(config, "vocab_size", high=2**24)
    ids = [_token_ids(raw, "eos_token_id", vocab_size) for raw in (config, generation)]
    return frozenset().union(*ids)


def load_token_id(model_dir: str | Path, name: str) -> int | None:
    """The first id that config.json, or else generation_config.json, has for a name such as bos_token_id."""
    config, generation = _read_configs(model_dir)
    vocab_size = int_field(config, "vocab_size", high=2**24)
    for raw in (config, generation):
        for token_id in _token_ids(raw, name, vocab_size):
            return token_id
    return None


# ---- the parts of a config ----


def _family(raw: Mapping[str, Any]) -> _Family:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        refuse("model_type", model_type, f"jbatch implements {', '.join(_FAMILIES)}")
    return _FAMILIES[model_type]


def _heads(raw: Mapping[str, Any], family: _Family, embed_dim: int) -> tuple[int, int, int]:
    """Query heads, KV heads, head_dim. null means "derive it"; an absent key means the family's default."""
    num_heads = int_field(raw, "num_attention_heads", high=2**12)
    num_kv_heads = num_heads
    if raw.get("num_key_value_heads", family.num_kv_heads) is not None:
        num_kv_heads = int_field(raw, "num_key_value_heads", high=2**12, default=family.num_kv_heads)
    if num_heads % num_kv_heads:
        refuse("num_key_value_heads", num_kv_heads, f"must divide num_attention_heads={num_heads}")
    if raw.get("head_dim", family.head_dim) is not None:
        head_dim = int_field(raw, "head_dim", high=2**10, default=family.head_dim)
    elif embed_dim % num_heads:
        refuse("hidden_size", embed_dim, f"must be a multiple of num_attention_heads={num_heads}")
    else:
        head_dim = embed_dim // num_heads
    if head_dim % 2 or head_dim > 2**10:
        refuse("head_dim", head_dim, "must be even, for the rotary embedding, and at most 1024")
    return num_heads, num_kv_heads, head_dim


def _sliding_window(raw: Mapping[str, Any], family: _Family, num_layers: int) -> int | None:
    """The window of whichever layers have one; None where attention is full."""
    window = raw.get("sliding_window", family.sliding_window)
    if window is not None:
        window = int_field(raw, "sliding_window", high=2**31, default=family.sliding_window)
    layer_types = _layer_types(raw, num_layers)
    use_window = _flag(raw, "use_sliding_window", family)
    if "use_sliding_window" not in family.flags:
        return window  # of all layers: transformers' mistral reads neither the flag nor layer_types
    first = int_field(raw, "max_window_layers", low=0, high=2**31, default=28)  # layers below it attend fully
    windowed = first < num_layers if layer_types is None else "sliding_attention" in layer_types
    return window if use_window and windowed else None


def _layer_types(raw: Mapping[str, Any], num_layers: int) -> list[str] | None:
    layer_types = raw.get("layer_types")
    if layer_types is None:
        return None
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        refuse("layer_types", layer_types, f"must be a list of num_hidden_layers={num_layers} names")
    for kind in layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            refuse("layer_types", kind, "jbatch implements full_attention")
    return layer_types


def _dtype(raw: Mapping[str, Any]) -> str:
    dtype = agreed("dtype", raw.get("dtype"), raw.get("torch_dtype"))
    if dtype is None:
        return "bfloat16"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse("dtype", dtype, f"must be one of {', '.join(DTYPES)}")
    return dtype


def _flag(raw: Mapping[str, Any], name: str, family: _Family) -> bool:
    """A flag that only some model types read; elsewhere it must be off, since transformers ignores it."""
    if name in family.flags:
        return bool_field(raw, name, default=False)
    if raw.get(name) not in (None, False):
        refuse(name, raw[name], f"not implemented for model_type={raw['model_type']!r}")
    return False


def _token_ids(raw: Mapping[str, Any], name: str, vocab_size: int) -> list[int]:
    value = raw.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        int_field({name: token_id}, name, low=0, high=vocab_size - 1)
    return ids


# ---- files ----


def _read_configs(model_dir: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    generation = read_optional(Path(model_dir) / "generation_config.json")
    return read_object(Path(model_dir) / "config.json"), generation
