"""What a processor is made of, checked where it is written down: on the driver, before an actor starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jbatch.config import EngineConfig, check_range
from jbatch.errors import ConfigError, check_option_names

MAX_ACTORS, MAX_ROWS, MAX_BATCHES = 2**16, 2**20, 1024


@dataclasses.dataclass(frozen=True)
class JBatchProcessorConfig:
    """A model, and how many actors run it. The names are those of `ray.data.llm`'s configurations.

    Args:
      model_source: a model directory, which every node of the cluster finds under this path.
      batch_size: rows that an actor is given at once.
      concurrency: actors, each with an engine of its own; (least, most) for as many as there is work for.
      engine_kwargs: the options of `jbatch.LLM`, by name.
      max_concurrent_batches: batches that an actor has at once. Its engine takes the next rows from them, so
        that the end of a batch leaves no slot empty.
      id_column: names each row: what a row draws by its own seed depends on this, and on neither its place
        nor its batch. An integer from 0 on draws as the prompt of this number does in `LLM.generate` and, one
        less than the number of its line, in a JSONL job. Without it rows of the same request draw alike.
      num_gpus, num_cpus: of each actor. By default the GPUs that its engine takes, and none for "cpu".
      runtime_env: of each actor, as Ray has it.

    Raises:
      ConfigError: naming the field, its value and what it must be.
      TypeError: for an unknown option of the engine.
    """

    model_source: str
    batch_size: int = 32
    concurrency: int | tuple[int, int] = 1
    engine_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_concurrent_batches: int = 8
    id_column: str | None = None
    num_gpus: float | None = None
    num_cpus: float | None = None
    runtime_env: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, 1, MAX_ROWS)
        check_range("max_concurrent_batches", self.max_concurrent_batches, 1, MAX_BATCHES)
        least, most = self.num_actors
        check_range("concurrency", least, 1, MAX_ACTORS)
        check_range("concurrency", most, least, MAX_ACTORS)
        own = ("tokenizer", "chat_template", "logits_fn")
        check_option_names(self.engine_kwargs, [*EngineConfig.__dataclass_fields__, *own], "LLM")
        EngineConfig(**{name: value for name, value in self.engine_kwargs.items() if name not in own})

    @property
    def num_actors(self) -> tuple[int, int]:
        """The least and the greatest number."""
        if isinstance(self.concurrency, int):
            return self.concurrency, self.concurrency
        if not isinstance(self.concurrency, (tuple, list)) or len(self.concurrency) != 2:
            raise ConfigError("concurrency", self.concurrency, "must be a number, or (least, most)")
        return self.concurrency[0], self.concurrency[1]

    @property
    def gpus_per_actor(self) -> float:
        if self.num_gpus is not None:
            return self.num_gpus
        return 0 if self.engine_kwargs.get("device") == "cpu" else gpus_of(self.engine_kwargs)


def gpus_of(llm_options: Mapping[str, Any]) -> int:
    """The GPUs that an LLM with these options takes."""
    return math.prod(llm_options.get(name) or 1 for name in ("tensor_parallel_size", "data_parallel_size"))
