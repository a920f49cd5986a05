"""What a model is (ModelConfig) and how the engine runs it (EngineConfig): frozen and validated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

from jbatch.errors import ConfigError, changed_in_a_copy
from jbatch.shown import changed_fields
from jbatch.sizes import parse_bytes

DTYPES = ("bfloat16", "float16", "float32")
PAGE_SIZES = (16, 32, 64, 128)
TOKEN_ALIGN = 8  # every chunk starts at a multiple of it in the packed token axis
MAX_BATCH_WAIT_S = 3600
MAX_ITL_MS = 3_600_000
MAX_RANKS = 64  # devices of one host
MAX_REPLICAS = 64  # in one process
WHOLE_PAGE = ": a page, or the longest sequence, must fit into a step"
DECODE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)

ModeName = Literal["continuous", "static", "static-full", "static-padded", "unbatched"]
PolicyName = Literal["fcfs", "sjf", "ljf", "priority", "deadline", "fair", "adaptive"]
AdmissionName = Literal["optimistic", "forecast", "no-evict"]
BackendName = Literal["auto", "xla", "triton", "mosaic"]
LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]
UpdateMode = Literal["retract", "wait", "abort"]  # what becomes of requests when weights change
GenerationConfigName = Literal["auto", "jbatch"]
SamplerName = Literal["greedy", "plain", "filtered", "logprobs", "processed", "extended"]


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


@changed_in_a_copy
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

    @property
    def context_len(self) -> int:
        """Tokens that the model was made for; yarn's factor counts from the length before scaling."""
        if self.rope.kind == "yarn":
            return max(self.max_position_embeddings, int(self.rope.original_max_len * self.rope.factor))
        return self.max_position_embeddings

    @property
    def max_context_len(self) -> int:
        """Tokens that it may serve. With linear scaling, config.json often names the length before it."""
        if self.rope.kind == "linear":
            return int(self.max_position_embeddings * self.rope.factor)
        return self.context_len

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values, over all layers."""
        itemsize = 4 if self.dtype == "float32" else 2
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * itemsize

    @property
    def possible_ranks(self) -> tuple[int, ...]:
        """The values of tensor_parallel_size that this model can be split for."""
        kv_heads, sizes = self.num_kv_heads, math.gcd(self.num_heads, self.mlp_dim)
        return tuple(
            n for n in range(1, MAX_RANKS + 1) if sizes % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)
        )

    def split(self, num_ranks: int) -> ModelConfig:
        """What each of `num_ranks` devices computes of this model, as a model of its own: a part of its
        heads, of its MLP, and of its vocabulary, rounded up. Where there are more devices than KV heads,
        several have the same one.

        Raises:
          ConfigError: for heads or an MLP that cannot be cut so.
        """
        if num_ranks == 1:
            return self
        if num_ranks not in self.possible_ranks:
            sizes = f"num_attention_heads={self.num_heads} and intermediate_size={self.mlp_dim}"
            kv_heads = f"num_key_value_heads={self.num_kv_heads}, or be a multiple of that"
            would_do = ", ".join(map(str, self.possible_ranks))
            reason = f"must divide the model's {sizes}, and divide {kv_heads}: {would_do} would do"
            raise ConfigError("tensor_parallel_size", num_ranks, reason)
        return dataclasses.replace(
            self,
            vocab_size=-(-self.vocab_size // num_ranks),
            mlp_dim=self.mlp_dim // num_ranks,
            num_heads=self.num_heads // num_ranks,
            num_kv_heads=max(1, self.num_kv_heads // num_ranks),
        )

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


@changed_in_a_copy
@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How an engine runs a model. Names and defaults follow vLLM where it has them.

    Raises:
      ConfigError: naming the field, its value and the limit.
    """

    dtype: str = "auto"  # of weights, activations and cache; "auto": of config.json, float32 on a CPU
    load_format: Literal["auto", "dummy"] = "auto"  # "dummy": random weights, for benchmarks
    max_model_len: int | None = None  # tokens of prompt and output; None: the model's limit
    max_num_seqs: int = 64  # sequences that run at once
    max_num_batched_tokens: int = 2048  # of prompts, in one step; decoding sequences are besides
    target_itl_ms: float | None = None  # prompt tokens beside what decodes: as many as keep it, measured
    page_size: int = 64  # tokens
    num_pages: int | None = None  # page 0 is never used; None: from the two below
    kv_cache_memory_bytes: int | None = None  # or a text: "4GiB"
    gpu_memory_utilization: float = 0.9  # share of the GPU's memory to use; counts before JAX's first use
    mode: ModeName = "continuous"
    batch_wait_timeout_s: float = 1.0  # static-full: how long the oldest waits for a full batch at most
    policy: PolicyName = "fcfs"
    admission: AdmissionName = "optimistic"  # how much of the page pool is kept for those that run
    max_preemption_probability: float = 0.1  # forecast: that the pages of those that run do not suffice
    tuned: str | None = None  # a file of `jbatch tune`, whose options stand in the place of these defaults
    predictor: str | None = None  # of output lengths: running-mean, prompt-length, or a trained one's file
    seed: int = 0
    generation_config: GenerationConfigName = "auto"  # whose sampling defaults: the model's, or jbatch's own
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel_size: int = 1  # devices that compute each step together, each a part of the model
    data_parallel_size: int = 1  # replicas, each on devices of its own, that share the requests
    attention_backend: BackendName = "auto"  # "auto": kernels that pass a check on this GPU, else plain JAX
    enable_prefix_caching: bool = True  # full pages of the same first tokens are computed once
    num_decode_steps: int = 1  # per dispatch, where nothing waits and nobody must see each token at once
    overlap: bool = True  # plan step n+1 while the device computes step n
    decode_buckets: tuple[int, ...] | None = None  # slots; the largest must hold max_num_seqs
    token_buckets: tuple[int, ...] | None = None  # prompt tokens of a step, multiples of 8
    logprobs_mode: LogprobsMode = "raw_logprobs"  # of output tokens; "processed_logprobs": as they were drawn
    samplers: tuple[SamplerName, ...] | None = None  # provided for at first; None: the first three
    compilation_cache_dir: str | None = "~/.cache/jbatch"  # None: compile anew in every process
    show_progress: bool = True  # while loading and compiling, on standard error

    __repr__ = changed_fields

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if isinstance(size := self.kv_cache_memory_bytes, str):
            object.__setattr__(self, "kv_cache_memory_bytes", parse_bytes("kv_cache_memory_bytes", size))
        check_choice("dtype", self.dtype, ("auto", *DTYPES))
        check_choice("load_format", self.load_format, ("auto", "dummy"))
        check_choice("page_size", self.page_size, PAGE_SIZES)
        check_choice("mode", self.mode, get_args(ModeName))
        if callable(self.policy):
            raise ConfigError("policy", self.policy, "is a function: give it to LLM.new_engine(policy=...)")
        check_choice("policy", self.policy, get_args(PolicyName))
        check_choice("admission", self.admission, get_args(AdmissionName))
        check_choice("generation_config", self.generation_config, get_args(GenerationConfigName))
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        check_choice("logprobs_mode", self.logprobs_mode, get_args(LogprobsMode))
        check_choice("attention_backend", self.attention_backend, get_args(BackendName))
        check_range("max_num_seqs", self.max_num_seqs, 1, 4096)
        least = self._least_budget()
        check_range("max_num_batched_tokens", self.max_num_batched_tokens, least, 2**20, WHOLE_PAGE)
        check_range("seed", self.seed, 0, 2**32 - 1, "; only a request's own seed may be another one")
        check_range("num_decode_steps", self.num_decode_steps, 1, 64)
        check_range("tensor_parallel_size", self.tensor_parallel_size, 1, MAX_RANKS)
        check_range("data_parallel_size", self.data_parallel_size, 1, MAX_REPLICAS)
        for name, low in (("max_model_len", 2), ("num_pages", 2), ("kv_cache_memory_bytes", 1)):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low, 2**62)
        if self.num_pages is not None and self.kv_cache_memory_bytes is not None:
            raise ConfigError("num_pages", self.num_pages, "set this or kv_cache_memory_bytes, not both")
        share = self.gpu_memory_utilization
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share <= 1:
            raise ConfigError("gpu_memory_utilization", share, "must be a number above 0, at most 1")
        share = self.max_preemption_probability
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share < 1:
            raise ConfigError("max_preemption_probability", share, "must be a number above 0, below 1")
        target = self.target_itl_ms
        known = isinstance(target, (int, float)) and not isinstance(target, bool)
        if target is not None and not (known and 0 < target <= MAX_ITL_MS):
            limit = f"must be a number of milliseconds above 0, at most {MAX_ITL_MS}"
            raise ConfigError("target_itl_ms", target, limit)
        wait = self.batch_wait_timeout_s
        if not isinstance(wait, (int, float)) or isinstance(wait, bool) or not 0 <= wait <= MAX_BATCH_WAIT_S:
            limit = f"must be a number of seconds from 0 to {MAX_BATCH_WAIT_S}"
            raise ConfigError("batch_wait_timeout_s", wait, limit)
        for name in ("overlap", "enable_prefix_caching", "show_progress"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(name, getattr(self, name), "must be true or false")
        for name in ("predictor", "tuned", "compilation_cache_dir"):
            if not isinstance(getattr(self, name), (str, type(None))):
                what = "a name, or a path" if name == "predictor" else "a path"
                raise ConfigError(name, getattr(self, name), f"must be {what}, as text")
        if self.samplers is not None:
            if not isinstance(self.samplers, (tuple, list)) or not self.samplers:
                raise ConfigError("samplers", self.samplers, "must be a list of names")
            for sampler in self.samplers:
                check_choice("samplers", sampler, get_args(SamplerName))
            object.__setattr__(self, "samplers", tuple(self.samplers))
        self._check_buckets("decode_buckets", self.decode_buckets, multiple=1, need=self.max_num_seqs)
        self._check_buckets(
            "token_buckets", self.token_buckets, multiple=TOKEN_ALIGN, need=self._least_budget()
        )

    def _least_budget(self) -> int:
        """Prompt tokens that a step must be able to take, so that a long prompt's chunks end with pages."""
        longest = self.max_model_len if isinstance(self.max_model_len, int) else self.page_size
        return max(TOKEN_ALIGN, min(self.page_size, -(-longest // TOKEN_ALIGN) * TOKEN_ALIGN))

    def _check_buckets(self, field: str, sizes: tuple[int, ...] | None, *, multiple: int, need: int) -> None:
        if sizes is None:
            return
        if not isinstance(sizes, (tuple, list)):
            raise ConfigError(field, sizes, "must be a list of integers")
        sizes = tuple(map(plain, sizes))
        for size in sizes:
            check_range(field, size, 1, 2**20)
            if size % multiple:
                raise ConfigError(field, sizes, f"{size} is no multiple of {multiple}")
        if max(sizes, default=0) < need:
            what = f"max_num_seqs={need}" if field == "decode_buckets" else f"{need}{WHOLE_PAGE}"
            raise ConfigError(field, sizes, f"the largest must be at least {what}")
        object.__setattr__(self, field, tuple(sorted(set(sizes))))

    def decode_sizes(self) -> tuple[int, ...]:
        """Slots of the decode programs, ascending; the largest holds `max_num_seqs`."""
        if self.decode_buckets is not None:
            return self.decode_buckets
        smaller = [size for size in DECODE_SIZES if size < self.max_num_seqs]
        above = range(DECODE_SIZES[-1], self.max_num_seqs, DECODE_SIZES[-1])
        return tuple(sorted({*smaller, *above, self.max_num_seqs}))

    def token_sizes(self, max_model_len: int) -> tuple[int, ...]:
        """Prompt tokens of the programs that have any: powers of two up to what one step may have to hold."""
        if self.token_buckets is not None:
            return self.token_buckets
        aligned_len = -(-max_model_len // TOKEN_ALIGN) * TOKEN_ALIGN
        most = min(
            -(-self.max_num_batched_tokens // TOKEN_ALIGN) * TOKEN_ALIGN, self.max_num_seqs * aligned_len
        )
        sizes = [size for size in (32 << i for i in range(16)) if size < most]
        return (*sizes, most)


def plain(value: Any) -> Any:
    """A scalar of NumPy (or of JAX) as Python's own number or truth value; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def check_choice(field: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ConfigError where `value` is none of `choices`."""
    if value not in choices or isinstance(value, (bool, float)):  # 16.0 == 16
        raise ConfigError(field, value, f"must be one of {', '.join(map(str, choices))}")


def check_range(field: str, value: object, low: int, high: int, hint: str = "") -> None:
    """Raise ConfigError where `value` is not an integer from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(field, value, f"must be an integer from {low} to {high}{hint}")
