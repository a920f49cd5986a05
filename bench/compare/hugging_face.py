"""Hugging Face transformers on jbatch's own weights: `generate` in padded batches, and continuous batching.

For transformers 5.17 and later; run here with 5.24 on a CPU, and never on a GPU.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from bench.workloads.workload import WorkItem
from jbatch.errors import JBatchError
from weights import names

NO_EOS = -1
FLASH_PAGE = 256  # FlashAttention 2 takes pages of a multiple of it
WAIT_S = 1.0  # between looks at whether the manager's thread still lives
ATTENDS_OVER_ALL = ", over the packed keys of all sequences, masked"


def build(model_dir: Path, params: Mapping[str, Tensor], attention: str = "sdpa") -> Any:
    """A transformers model over jbatch's parameters, which it shares but for q, k and v.

    Args:
      model_dir: where config.json is.
      attention: transformers' name of an implementation.
    """
    transformers.logging.set_verbosity_error()  # it warns of an end-of-sequence that never comes
    dtype = params["embedding"].dtype
    config = transformers.AutoConfig.from_pretrained(model_dir)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        )
    keys = model.load_state_dict(to_hugging_face(params), strict=False, assign=True)
    missing = set(keys.missing_keys) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    if missing or keys.unexpected_keys:
        raise JBatchError(f"transformers lacks {sorted(missing)} and does not know {keys.unexpected_keys}")
    model.tie_weights()
    device = params["embedding"].device
    rotary = type(model.model.rotary_emb)  # its frequencies are no parameters, so they have no values yet
    model.model.rotary_emb = rotary(config).to(device)
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    return model.eval().requires_grad_(False)


def to_hugging_face(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `weights.to_hugging_face`, for tensors: by Hugging Face's names, and views where that is
    possible."""
    return {
        part.name: tensor[part.where].reshape(part.shape)
        for name, tensor in params.items()
        for part in names.parts(name, tuple(tensor.shape))
    }


class Generate:
    """`generate` with left padding and a static cache, in batches of `batch_size` in order of arrival.

    A batch runs to its longest request. All batches have one shape, so that on a GPU, where `generate` itself
    compiles the step over a static cache, it does so once.
    """

    def __init__(self, model: Any, batch_size: int, items: Sequence[WorkItem]):
        self._model, self._batch_size = model, batch_size
        batches = [items[begin : begin + batch_size] for begin in range(0, len(items), batch_size)]
        most = max(_longest_prompt(batch) + max(item.output_len for item in batch) for batch in batches)
        self._max_cache_len = most
        self._cache = transformers.StaticCache(config=model.config, max_cache_len=most)

    def describe(self) -> dict[str, Any]:
        """Attention, execution, device and version, for the report."""
        compiled = "compiled by generate" if self._model.device.type == "cuda" else "not compiled"
        return {
            "attention": attention_of(self._model),
            "execution": f"static cache of {self._max_cache_len} tokens, {compiled}",
            "device": str(self._model.device),
            "transformers": transformers.__version__,
        }

    def run(self, items: Sequence[WorkItem]) -> list[list[int]]:
        """Token ids of each request, as many as its `output_len`."""
        outputs: list[list[int]] = []
        for begin in range(0, len(items), self._batch_size):
            outputs += self._batch(items[begin : begin + self._batch_size])
        return outputs

    def close(self) -> None:
        """Let go of the model's and the cache's memory."""
        del self._model, self._cache

    def _batch(self, items: Sequence[WorkItem]) -> list[list[int]]:
        prompt_len = _longest_prompt(items)
        padded = [*items, *[items[-1]] * (self._batch_size - len(items))]  # the last batch too
        ids = [[0] * (prompt_len - len(item.prompt_token_ids)) + [*item.prompt_token_ids] for item in padded]
        mask = [
            [int(place >= prompt_len - len(item.prompt_token_ids)) for place in range(prompt_len)]
            for item in padded
        ]
        self._cache.reset()  # the same memory for all batches, or a captured step would be captured again
        num_tokens = max(item.output_len for item in items)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # 5.24 renames `past_key_values`; 5.17 has no other
            out = self._model.generate(
                torch.tensor(ids, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                past_key_values=self._cache,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                eos_token_id=NO_EOS,
            )
        rows = out[:, prompt_len:].tolist()
        return [row[: item.output_len] for item, row in zip(items, rows, strict=False)]


def _longest_prompt(items: Sequence[WorkItem]) -> int:
    return max(len(item.prompt_token_ids) for item in items)


class Continuous:
    """`generate_batch`'s continuous batching, with an output length for each request.

    The manager is made and warmed up once; prefixes are not shared, so that no repeat is served from a cache.

    Args:
      cache_tokens: of the KV cache.
    """

    def __init__(self, model: Any, max_num_seqs: int, cache_tokens: int, page_size: int):
        fields = {field.name for field in dataclasses.fields(transformers.ContinuousBatchingConfig)}
        if attention_of(model).startswith("flash"):
            page_size = -(-page_size // FLASH_PAGE) * FLASH_PAGE
        options: dict[str, Any] = {
            "page_size" if "page_size" in fields else "block_size": page_size,  # until 5.17
            "num_blocks": max_num_seqs + -(-cache_tokens // page_size),  # a page of each may be part full
            "max_batch_tokens": max(2048, max_num_seqs) if model.device.type == "cuda" else 256,
            "max_requests_per_batch": max_num_seqs,
            "allow_block_sharing": False,
        }
        self._model, self._options = model, options
        self._manager = model.init_continuous_batching(
            generation_config=transformers.GenerationConfig(
                do_sample=False, eos_token_id=NO_EOS, pad_token_id=0, max_new_tokens=1
            ),
            continuous_batching_config=transformers.ContinuousBatchingConfig(**options),
        )
        if model.device.type == "cuda" and (warm_up := getattr(self._manager, "warmup", None)):
            warm_up()
        self._manager.start()
        self._round = 0

    def describe(self) -> dict[str, Any]:
        """Attention, execution, device and version, for the report."""
        attention = attention_of(self._model)
        return {
            "attention": attention + ("" if "flash" in attention else ATTENDS_OVER_ALL),
            "execution": ", ".join(f"{name}={value}" for name, value in self._options.items()),
            "device": str(self._model.device),
            "transformers": transformers.__version__,
        }

    def run(self, items: Sequence[WorkItem]) -> list[list[int]]:
        """One pass over the requests: the token ids of each.

        Raises:
          JBatchError: for a request that transformers failed, and where its thread ended.
        """
        self._round += 1
        request_ids = [f"{self._round}-{number}" for number in range(len(items))]
        for request_id, item in zip(request_ids, items, strict=True):
            self._manager.add_request(
                list(item.prompt_token_ids), request_id, item.output_len, eos_token_id=NO_EOS
            )
        outputs: dict[str, list[int]] = {}
        while len(outputs) < len(items):
            result = self._manager.get_result(timeout=WAIT_S)
            if result is None:
                if not self._manager.is_running():
                    raise JBatchError("transformers' continuous batching ended: its log says why")
            elif result.error is not None:
                raise JBatchError(f"request {result.request_id}: {result.error}")
            elif result.is_finished():
                outputs[result.request_id] = list(result.generated_tokens)
        return [outputs[request_id] for request_id in request_ids]

    def close(self) -> None:
        """End the manager's thread, and let go of the model's memory."""
        self._manager.stop(block=True, timeout=5 * WAIT_S)
        self._manager.destroy()
        del self._model


def attention_of(model: Any) -> str:
    """What attends in a model: continuous batching may have changed it, and no public name tells."""
    return model.config._attn_implementation


def best_attention(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest implementation that transformers has here for continuous batching."""
    if device.type == "cuda" and dtype != torch.float32:
        for module, name in (
            ("flash_attn_interface", "flash_attention_3"),
            ("flash_attn", "flash_attention_2"),
        ):
            if importlib.util.find_spec(module) is not None:
                return name
    return "sdpa"
