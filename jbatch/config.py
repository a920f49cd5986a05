"""What a model is (ModelConfig) and how the engine runs it (EngineConfig): frozen and validated."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jbatch.errors import ConfigError

DTYPES = ("bfloat16", "float16", "float32")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and how its frequencies are scaled.

    kind "linear" is position interpolation (Chen et al. 2023), "llama3" the band-wise scaling of
    Llama 3.1, "yarn" NTK-by-parts with attention scaling (Peng et al. 2023).
    Fields that a kind does not use are ignored.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_len: int = 0  # context length before scaling (llama3, yarn)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    truncate: bool = True  # yarn: round the correction range to whole dimensions


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes the mathematics of one LLaMA-like model."""

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str = "bfloat16"  # of weights, activations and cache; norms, softmax and logits are float32
    sliding_window: int | None = None  # attention is full, so a context must fit the window: `check_context`

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    def check_context(self, max_model_len: int) -> None:
        """Raise ConfigError where the model's sliding window would cut into a context of `max_model_len`:
        up to the window's length sliding and full attention are the same, beyond it they differ."""
        if self.sliding_window is not None and max_model_len > self.sliding_window:
            raise ConfigError(
                "sliding_window",
                self.sliding_window,
                f"sliding-window attention is not implemented, so max_model_len={max_model_len} "
                f"must be at most {self.sliding_window}",
            )
