"""What is measured: a model and an engine's options, that can be built again after an arm broke it."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench.ladder.arms import Arm
from bench.measure.floor import Floor, floor_of
from bench.measure.models import DEMO, MODEL_NAMES, model_dir
from jbatch.config import EngineConfig, ModeName, PolicyName
from jbatch.errors import ConfigError
from jbatch.model_dir.config_json import load_config

if TYPE_CHECKING:
    from jbatch.engine.engine import Engine
    from jbatch.llm import LLM
    from jbatch.seam.runner import Runner

DEMO_OPTIONS: dict[str, Any] = {"page_size": 16}  # its sequences are short
DEMO_SCALE = 0.25  # of the scenarios' lengths, for a model whose context is 1024
CEILING_ROUNDS = 3


class Subject(Protocol):
    """What a ladder runs on."""

    page_size: int
    max_num_seqs: int
    floor: Floor | None

    def new_engine(self, arm: Arm, max_num_seqs: int) -> Engine:
        """A fresh engine, on the same weights, kernels and compiled programs for all arms."""
        ...

    def num_compilations(self) -> int:
        """Programs that were compiled since the engine was ready."""
        ...

    def rebuild(self) -> None:
        """Build everything anew, after an arm failed: it may have taken the device's state along."""
        ...


class LLMSubject:
    """An LLM under measurement; `about` goes into the manifest.

    Args:
      model: a name of bench.measure.models (random weights, but for "demo"), or a model directory.
      max_model_len: tokens of the longest request.
      options: fields of EngineConfig.
      measure_floor: measure the device's rates, before the model takes its memory.
      modes: whose programs are compiled at once; those of others follow in the middle of a run.

    Raises what LLM raises.
    """

    def __init__(
        self,
        model: str,
        max_model_len: int,
        options: dict[str, Any],
        measure_floor: bool = True,
        modes: Iterable[ModeName] = (),
    ):
        self._modes = tuple(modes)
        cold = {"enable_prefix_caching": False}  # unless asked: or a repeated prompt would cost nothing
        self._path, self._options = engine_options(model, max_model_len, cold | options)
        self.about: dict[str, Any] = {"model": model, "engine": self._options}
        self.floor = self._measure_floor() if measure_floor else None
        self.llm = self._build()
        self.page_size, self.max_num_seqs = self.llm.config.page_size, self.llm.config.max_num_seqs

    @property
    def policy(self) -> PolicyName:
        """The engine's own, by its options."""
        return self.llm.config.policy

    def new_engine(self, arm: Arm, max_num_seqs: int, runner: Runner[Any] | None = None) -> Engine:
        """As `Subject` has it; on another runner than the LLM's where one is given."""
        from jbatch.engine.replicas import single
        from jbatch.host.itl_limits import limits_of

        limits = limits_of(self.llm.config, self.llm.engine.scheduler.config.buckets, max_num_seqs)
        engine = self.llm.new_engine(mode=arm.mode, policy=arm.policy, limits=limits, runner=runner)
        return single(engine, "a comparison")

    def num_compilations(self) -> int:
        """Programs that were compiled since the engine was ready."""
        return self.llm.runner.compilations_after_warmup

    def rebuild(self) -> None:
        """Load the model and compile its programs anew."""
        self.close()
        self.llm = self._build()

    def close(self) -> None:
        """Free the device's memory."""
        self.llm.close()

    def _build(self) -> LLM:
        from jbatch.llm import LLM

        begin = time.monotonic()
        llm = LLM(self._path, **self._options)
        for mode in self._modes:
            llm.new_engine(mode=mode)
        built = time.monotonic()
        llm.runner.warm_up()
        self.about |= {
            "model_config": dataclasses.asdict(llm.model_config),
            "max_num_seqs": llm.config.max_num_seqs,
            "num_pages": llm.runner.shape.num_pages,
            "page_size": llm.config.page_size,
            "max_model_len": llm.max_model_len,
            "kv_bytes_per_token": llm.model_config.kv_bytes_per_token,
            "batch_wait_timeout_s": llm.config.batch_wait_timeout_s,
            "attention": llm.runner.spec.attention._asdict(),
            "num_programs": llm.runner.num_programs,
            "compile_s": built - begin,  # weights included
            "warm_up_s": time.monotonic() - built,
        }
        return llm

    def _measure_floor(self) -> Floor:
        import jax

        from bench.measure import ceilings
        from jbatch.device.platform import find_device, prepare_jax

        config = EngineConfig(**self._options)
        prepare_jax(config)
        model = load_config(self._path)
        if config.dtype != "auto":
            model = dataclasses.replace(model, dtype=config.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the LLM says it, too
            device = find_device(config.device)
        sizes = ceilings.sizes_beside(device, model.dtype)
        with jax.default_device(device):
            rates = ceilings.measure(sizes, CEILING_ROUNDS)
        self.about["ceilings"] = rates._asdict() | {"sizes": sizes._asdict()}
        return floor_of(model, rates.read_bytes_per_s, rates.gemm_flop_per_s)


def engine_options(model: str, max_model_len: int, options: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The model's directory, and an LLM's options for requests of at most `max_model_len` tokens."""
    path, defaults = find_model(model)
    complete = defaults | options
    page_size = complete.get("page_size", EngineConfig.page_size)
    longest = load_config(path).max_context_len
    complete.setdefault("max_model_len", min(longest, -(-max_model_len // page_size) * page_size))
    return path, complete


def find_model(model: str) -> tuple[Path, dict[str, Any]]:
    """A model's directory, and the options that it is run with by default. Raises ConfigError for none."""
    if model in MODEL_NAMES:
        return model_dir(model), dict(DEMO_OPTIONS) if model == DEMO else {"load_format": "dummy"}
    path = Path(model)
    if not path.is_dir():
        raise ConfigError("model", model, f"must be a model directory or one of {', '.join(MODEL_NAMES)}")
    return path, {}
