"""A model directory, opened: checked, its tokenizer read, its weights on the device."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from jbatch import shown
from jbatch.config import EngineConfig, ModelConfig
from jbatch.device.build import build_runner
from jbatch.device.groups import device_groups
from jbatch.device.platform import prepare_jax
from jbatch.device.process.user_fn import LogitsFn
from jbatch.device.runner import Runner
from jbatch.device.verdict import prove_kernels
from jbatch.distribution import version
from jbatch.engine.description import describe_cache
from jbatch.errors import stacklevel_of_caller
from jbatch.host.lengths.find import find_predictor
from jbatch.host.lengths.prediction import Predictor
from jbatch.model_dir.config_json import load_eos_token_ids, load_token_id
from jbatch.model_dir.generation_json import load_sampling_defaults
from jbatch.model_dir.paths import check_tokenizer_dir, unread_tokenizer
from jbatch.model_dir.resolve import resolve_max_model_len, resolve_model
from jbatch.model_dir.tuned import check_tuned, tuned_doubts
from jbatch.text.chat import ChatEncoder
from jbatch.text.tokenizer import Tokenizer, load_tokenizer


class Opened(NamedTuple):
    """What a model directory says, and what was made of it.

    Attributes:
      model: in the device's dtype.
      sampling_defaults: fields of SamplingParams that the model sets.
    """

    model: ModelConfig
    max_model_len: int
    sampling_defaults: dict[str, Any]
    tokenizer: Tokenizer | None
    eos_token_ids: frozenset[int]
    chat_encoder: ChatEncoder
    predictor: Predictor | None
    runners: tuple[Runner, ...]  # one for each replica


def open_model(
    model_dir: Path,
    config: EngineConfig,
    tokenizer: str | Path | None,
    chat_template: str | Path | None,
    logits_fn: LogitsFn | None,
) -> Opened:
    """See LLM. What can be refused without JAX is refused first."""
    model = resolve_model(model_dir, config)
    max_model_len = resolve_max_model_len(config, model)
    check_tuned(config, model)
    sampling_defaults = load_sampling_defaults(model_dir, config.generation_config)
    if tokenizer is not None:
        check_tokenizer_dir(tokenizer)
    elif (reason := unread_tokenizer(model_dir)) is not None:
        warnings.warn(f"{model_dir} {reason}", stacklevel=stacklevel_of_caller())  # prompts of token ids work
    tokenizer_dir = Path(tokenizer or model_dir)
    named = (load_token_id(model_dir, name) for name in ("bos_token_id", "eos_token_id"))
    loaded = load_tokenizer(tokenizer_dir, *named)
    chat_encoder = ChatEncoder(tokenizer_dir, loaded, chat_template)
    predictor = find_predictor(config.predictor)
    prepare_jax(config)
    runners: tuple[Runner, ...]
    if config.data_parallel_size == 1:
        runners = (build_runner(model_dir, config, model, max_model_len, logits_fn),)
    else:
        prove_kernels(config, model, max_model_len)  # before this process opens CUDA
        groups = device_groups(config)
        runners = tuple(
            build_runner(model_dir, config, model, max_model_len, logits_fn, group) for group in groups
        )
    for doubt in tuned_doubts(config, runners[0].spec.device.device_kind, version()):
        warnings.warn(doubt, stacklevel=stacklevel_of_caller())
    return Opened(
        runners[0].spec.config,
        max_model_len,
        sampling_defaults,
        loaded,
        _eos_token_ids(model_dir, loaded),
        chat_encoder,
        predictor,
        runners,
    )


def describe_opened(opened: Opened) -> str:
    """On what it runs, and its sizes, in a line."""
    runners = opened.runners
    spec, shape = runners[0].spec, runners[0].shape
    num_devices = len(runners) * spec.ranks.size
    devices = f"{num_devices} x " if num_devices > 1 else ""
    each = f"{len(runners)} replicas, each with " if len(runners) > 1 else ""
    return (
        f"{opened.model.dtype} on {devices}{spec.device.device_kind}; {each}"
        f"{shown.count(shape.num_rows, 'sequence')} of at most {shown.count(opened.max_model_len)}; "
        f"{describe_cache(shape)}; {shown.count(runners[0].num_programs, 'program')} compiled"
    )


def _eos_token_ids(model_dir: Path, tokenizer: Tokenizer | None) -> frozenset[int]:
    """What config, generation config and tokenizer name, together: Llama 3 has three."""
    eos = load_eos_token_ids(model_dir)
    named = None if tokenizer is None else tokenizer.eos_token_id
    return eos if named is None else eos | {named}
