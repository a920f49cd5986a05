"""Engines on one opened model: each with its own mode, policy and limits. Several replicas are one engine."""

from __future__ import annotations

import dataclasses
from typing import Any

from jbatch.config import EngineConfig, ModeName, PolicyName
from jbatch.engine.engine import Engine
from jbatch.engine.intake import Intake
from jbatch.engine.replicas import AnyEngine, Replicas
from jbatch.errors import ConfigError
from jbatch.host.config import scheduler_config
from jbatch.host.itl_limits import limits_of
from jbatch.host.limits import Limits
from jbatch.host.policies import POLICIES
from jbatch.host.policy import KeyFunction, Policy, policy_of
from jbatch.host.scheduler import Scheduler
from jbatch.llm.opening import Opened
from jbatch.seam.bucket import buckets_of
from jbatch.seam.runner import Runner

AnyPolicy = PolicyName | Policy | KeyFunction


def new_engine(
    opened: Opened,
    config: EngineConfig,
    mode: ModeName | None = None,
    policy: AnyPolicy | None = None,
    limits: Limits | None = None,
    runner: Runner[Any] | None = None,
) -> AnyEngine:
    """See `LLM.new_engine`; what is not given is the config's. Its steps are declared, and not compiled."""
    if runner is not None and len(opened.runners) > 1:
        reason = "one for several replicas: with data_parallel_size=1 an engine may have another runner"
        raise ConfigError("runner", type(runner).__name__, reason)
    key: Any = config.policy if policy is None else policy
    own = callable(key) or isinstance(key, Policy)
    name = config.policy if own else key  # which is checked
    config = dataclasses.replace(config, mode=mode or config.mode, policy=name)
    buckets = buckets_of(config, opened.max_model_len)
    schedulers, all_limits = [], []
    for own_runner in opened.runners:
        own_runner.declare(buckets=buckets)  # another mode has other steps
        shape, order = own_runner.shape, policy_of(key) if own else POLICIES[name]
        told = scheduler_config(config, shape, opened.max_model_len, buckets, order)
        all_limits.append(limits or limits_of(config, buckets, config.max_num_seqs))
        schedulers.append(Scheduler(told, all_limits[-1]))
    intake = Intake(
        vocab_size=opened.model.vocab_size,
        max_seq_len=min(scheduler.max_seq_len for scheduler in schedulers),
        eos_token_ids=opened.eos_token_ids,
        tokenizer=opened.tokenizer,
        seed=config.seed,
        predictor=opened.predictor,
    )
    engines = [
        Engine(scheduler, each, intake, overlap=config.overlap, on_record=getattr(own_limits, "landed", None))
        for scheduler, each, own_limits in zip(
            schedulers, opened.runners if runner is None else (runner,), all_limits, strict=True
        )
    ]
    return engines[0] if len(engines) == 1 else Replicas(engines)
