"""What a step takes at least on a device of measured rates: the serial roofline.

    GEMMs       max(weight bytes / read rate, 2 x weights x rows / GEMM rate)
    attention   max(KV bytes / read rate, 4 x heads x head_dim x (query, key) pairs x layers / GEMM rate)

One after the other, as a step runs them; norms, sampling and launches cost nothing. Good engines reach 70 to
90 % of it in decode.
"""

from __future__ import annotations

from typing import NamedTuple

from jbatch.config import ModelConfig


class Floor(NamedTuple):
    """Rates of a device and sizes of a model."""

    read_bytes_per_s: float
    gemm_flop_per_s: float
    layer_params: int  # weights of all layers' GEMMs
    head_params: int  # of the projection to the vocabulary; the embedding is gathered, not read
    itemsize: int
    kv_bytes_per_token: int
    flop_per_pair: int  # of attention, for one query and one key, over all layers and heads

    def decode_s(self, rows: int, keys: int) -> float:
        """Seconds of a decode step for `rows` sequences that have `keys` tokens in all."""
        return self.step_s(rows, rows, keys, keys)

    def step_s(self, tokens: int, draws: int, keys: int, pairs: int) -> float:
        """Seconds of a step: `tokens` new ones of sequences that then have `keys`, each new one attending to
        those before it (`pairs` in all), and `draws` of them projected to the vocabulary."""
        flop = 2 * (self.layer_params * tokens + self.head_params * draws)
        return self._gemm_s(flop) + self.attention_s(keys, pairs)

    def _gemm_s(self, flop: int) -> float:
        num_bytes = (self.layer_params + self.head_params) * self.itemsize
        return max(num_bytes / self.read_bytes_per_s, flop / self.gemm_flop_per_s)

    def attention_s(self, keys: int, pairs: int) -> float:
        """Seconds of reading keys and values, or of multiplying them, whichever takes longer."""
        read_s = keys * self.kv_bytes_per_token / self.read_bytes_per_s
        return max(read_s, pairs * self.flop_per_pair / self.gemm_flop_per_s)


def floor_of(model: ModelConfig, read_bytes_per_s: float, gemm_flop_per_s: float) -> Floor:
    """The floor of a model at measured rates (bench.measure.ceilings)."""
    qkv = model.embed_dim * (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    out = model.num_heads * model.head_dim * model.embed_dim
    mlp = 3 * model.embed_dim * model.mlp_dim
    return Floor(
        read_bytes_per_s,
        gemm_flop_per_s,
        layer_params=model.num_layers * (qkv + out + mlp),
        head_params=model.vocab_size * model.embed_dim,
        itemsize=4 if model.dtype == "float32" else 2,
        kv_bytes_per_token=model.kv_bytes_per_token,
        flop_per_pair=4 * model.num_heads * model.head_dim * model.num_layers,
    )
