"""`build_processor`: from a dataset of prompts to one of answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jbatch.distribution import install_hint
from jbatch.errors import JBatchError
from jbatch.integrations.ray_data.config import JBatchProcessorConfig
from jbatch.integrations.ray_data.rows import ERROR

Row = dict[str, Any]
RowFunction = Callable[[Row], Row]


def build_processor(
    config: JBatchProcessorConfig,
    preprocess: RowFunction | None = None,
    postprocess: RowFunction | None = None,
) -> Callable[[Any], Any]:
    """A function from a `ray.data.Dataset` of prompts to one of answers, as `ray.data.llm` builds it.

    A row has a `prompt`, `messages` or a `tokenized_prompt`, and `sampling_params`, a dictionary, if you
    like. All its columns stay; the columns of Answer come besides. `__inference_error__` is empty, or says
    why a row has no answer.

    Args:
      preprocess: called with each row; the columns that it gives are added before.
      postprocess: called with each row that has an answer; what it gives is all that is kept of it, and
        `__inference_error__`. A row without an answer goes past it as it is.

    Raises:
      JBatchError: where Ray Data is not installed.
    """
    try:
        from ray.data import ActorPoolStrategy

        from jbatch.integrations.ray_data.batches import Batches
    except ImportError as error:
        raise JBatchError(f"Ray Data is needed ({error}): {install_hint('ray')}") from error

    least, most = config.num_actors
    pool = ActorPoolStrategy(min_size=least, max_size=most)

    def process(dataset: Any) -> Any:
        if preprocess is not None:
            dataset = dataset.map(_adding(preprocess))
        # Blocks no larger than a batch: all actors get some, whatever the dataset is cut into.
        dataset = dataset.repartition(target_num_rows_per_block=config.batch_size)
        dataset = dataset.map_batches(
            Batches,
            fn_constructor_args=(config,),
            batch_size=config.batch_size,
            batch_format="pyarrow",
            compute=pool,
            num_gpus=config.gpus_per_actor,
            num_cpus=config.num_cpus,
            runtime_env=None if config.runtime_env is None else dict(config.runtime_env),
            max_concurrency=config.max_concurrent_batches,
        )
        return dataset if postprocess is None else dataset.map(_of_answered(postprocess))

    return process


def _adding(preprocess: RowFunction) -> RowFunction:
    return lambda row: {**row, **preprocess(row)}


def _of_answered(postprocess: RowFunction) -> RowFunction:
    def apply(row: Row) -> Row:
        return row if row[ERROR] else {**postprocess(row), ERROR: ""}

    return apply
