"""Errors a caller can act on. Each message names the field, the value and the limit."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from typing import Any

MAX_NAME_CHARS = 64  # of a field, in an error
# Errors of the system that are nobody's mistake: what is full, broken, gone or used up.
FAILURES = frozenset({"ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "ESTALE", "ENXIO", "ENODEV", "EPIPE"})
FAILURES |= {"EBADF", "ENOMEM", "EMFILE", "ENFILE", "ENOLCK"}
CLOSE = 0.75  # likeness of two names, at least, for one to be a slip of the pen

# Names here, and what vLLM's older versions, SGLang, TensorRT-LLM, llama.cpp, OpenAI and transformers call
# the same. A name elsewhere may mean one thing of a request and another of an engine.
_ALSO_CALLED = {
    # of a request
    "max_tokens": """max_completion_tokens max_new_tokens max_output_tokens max_gen_toks max_gen_len
        max_gen_tokens max_length max_tokens_to_sample n_predict num_predict output_len""",
    "min_tokens": "min_new_tokens min_completion_tokens min_output_tokens",
    "seed": "sampling_seed random_seed rng_seed",
    "stop": "stop_strings stop_sequences stop_words until",
    "stop_token_ids": "eos_token_id eos_token_ids stop_tokens stop_ids stop_token_id end_id",
    "ignore_eos": "ignore_eos_token",
    "n": "num_return_sequences num_samples n_samples num_completions num_choices num_outputs",
    "logprobs": "top_logprobs num_logprobs return_logprob return_logprobs n_probs output_logprobs",
    "prompt_logprobs": "input_logprobs return_prompt_logprobs context_logprobs",
    "repetition_penalty": "repeat_penalty rep_pen",
    "temperature": "temp",
    "include_stop_str_in_output": "no_stop_trim include_stop_string",
    "bad_words": "bad_words_ids banned_words",
    "allowed_token_ids": "allowed_tokens",
    "prompt": "messages input inputs text input_text prompts",
    "messages": "prompt input inputs conversation conversations chat",
    "prompt_token_ids": "input_ids prompt_ids token_ids prompt_tokens input_token_ids",
    "custom_id": "id request_id",
    # of an engine
    "page_size": "block_size tokens_per_block kv_block_size",
    "num_pages": "num_gpu_blocks_override num_gpu_blocks num_blocks num_kv_blocks max_total_tokens",
    "kv_cache_memory_bytes": "kv_cache_memory kv_cache_bytes kv_cache_size",
    "gpu_memory_utilization": """mem_fraction_static gpu_memory_fraction kv_cache_free_gpu_memory_fraction
        gpu_memory""",
    "max_num_seqs": """max_running_requests max_batch_size batch_size max_concurrency max_num_sequences
        max_seqs""",
    "max_num_batched_tokens": """chunked_prefill_size max_prefill_tokens max_batch_tokens
        max_batched_tokens max_num_tokens""",
    "max_model_len": """max_seq_len max_context_len context_length context_len ctx_size n_ctx max_length
        max_len max_sequence_length max_position_embeddings""",
    "dtype": "torch_dtype precision",
    "policy": "scheduling_policy schedule_policy scheduler_policy",
    "mode": "batching batching_mode",
    "attention_backend": "attn_backend attn_implementation attention_impl backend",
    "decode_buckets": "cuda_graph_sizes cuda_graph_bs cudagraph_capture_sizes precompile_bs_paddings",
    "token_buckets": "precompile_token_paddings prefill_buckets",
    "overlap": "async_scheduling overlap_schedule",
    "compilation_cache_dir": "compile_cache_dir cache_dir",
    "show_progress": "use_tqdm progress",
    "generation_config": "override_generation_config generation_config_path",
    "load_format": "weights_format",
    # of a job
    "input_file": "input in",
    "output_file": "output out",
}

# Options elsewhere for what there is not here, and what to do instead.
_MORE_HOSTS = (
    "one model runs within one host. Spread it over the GPUs of this one (tensor_parallel_size), or run "
    "one replica on each host: jbatch generate --ray, jbatch.integrations.ray_data, or --shard i/n"
)
_INSTEAD = {
    _MORE_HOSTS: """pipeline_parallel_size pipeline_parallel pp_size distributed_executor_backend nnodes
        num_nodes node_rank master_addr master_port dist_init_addr data_parallel_address
        data_parallel_rpc_port data_parallel_backend ray_workers_use_nsight""",
}


class JBatchError(Exception):
    """Base of every error that jbatch raises on purpose."""


class ConfigError(JBatchError, ValueError):
    """A model or engine configuration that jbatch refuses.

    Attributes:
      field: the name of the field that is wrong.
      value: what it was set to.
    """

    def __init__(self, field: str, value: Any, reason: str):
        self.field, self.value, self.reason = field, value, reason
        super().__init__(f"{field}={_shorten(value)}: {reason}")


class RequestError(JBatchError, ValueError):
    """One request that cannot be served; the rest of its batch goes on.

    Attributes:
      field: the request field that is wrong.
      value: what it was set to.
      code: a stable, machine-readable name of the reason.
    """

    def __init__(self, field: str, value: Any, reason: str, *, code: str = "invalid_request"):
        self.field, self.value, self.reason, self.code = field, value, reason, code
        super().__init__(f"{field}={_shorten(value)}: {reason}")


class UserFunctionError(JBatchError):
    """A function of the caller's own that fails for no request in particular. Nothing was changed."""

    def __init__(self, option: str, function: Any, reason: str):
        name = getattr(function, "__name__", type(function).__name__)
        super().__init__(f"{option}={name!r}: {reason}")


class JobError(JBatchError):
    """A job that had to stop. What it wrote stays, and the same command goes on from there."""


class OutputChanged(JobError):
    """A job that had to stop, as somebody else wrote to its output. What is there now stays."""

    def __init__(self, path: str, how: str):
        super().__init__(f"{path} was changed by someone else while it was written: {how}")


def describe_os_error(error: OSError) -> str:
    """What the system refused, and of which file, without the number of the error."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror}: {os.fsdecode(error.filename)!r}"


def is_failure(error: OSError) -> bool:
    """Whether the machine failed, as a full disk does; else the user named what is not there, or not his."""
    return errno.errorcode.get(error.errno or 0) in FAILURES


def check_option_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise TypeError for a name in `given` that is not in `known`, suggesting the closest one."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(_no_option(name, known, what))


def unknown_field(path: str, name: Any, value: Any, known: Iterable[str], what: str) -> RequestError:
    """The error of a field within `path` that `what` does not have, suggesting the closest one it has."""
    shown = str(name)[:MAX_NAME_CHARS]
    at = f"{path}.{repr(shown)[1:-1]}" if path else repr(shown)[1:-1]
    return RequestError(at, value, _no_option(shown, list(known), what), code="unknown_field")


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` that is meant by `name`: by what it means elsewhere, or by its spelling; or None.

    A name that only looks alike is none: a wrong hint misleads more than a list of what there is.
    """
    known = list(known)
    plain = _plain(name)
    meant = [ours for ours in known if plain in _ALSO_CALLED.get(ours, "").split()]
    same = [ours for ours in known if _plain(ours).replace("_", "") == plain.replace("_", "")]
    close = difflib.get_close_matches(plain, known, n=1, cutoff=CLOSE)
    return next(iter([*same, *meant, *close]), None)


def instead_of(name: str) -> str | None:
    """What to do where an option elsewhere asks for what there is not here; None for any other name."""
    return next((text for text, names in _INSTEAD.items() if _plain(name) in names.split()), None)


def _no_option(name: str, known: list[str], what: str) -> str:
    if (instead := instead_of(name)) is not None:
        return f"{what} has no option {name!r}: {instead}"
    nearest = nearest_name(name, known)
    hint = f"; known: {', '.join(sorted(known))}" if nearest is None else f"; did you mean {nearest!r}?"
    return f"{what} has no option {name!r}{hint}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").strip("_")


def _shorten(value: Any, limit: int = 80) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[:limit] + "..."
