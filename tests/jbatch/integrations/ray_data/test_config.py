"""What a processor's configuration refuses."""

import pytest

from jbatch.errors import ConfigError
from jbatch.integrations.ray_data import JBatchProcessorConfig


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"batch_size": 0}, "batch_size=0: must be an integer from 1 to"),
        ({"concurrency": 0}, "concurrency=0: must be an integer from 1 to"),
        ({"concurrency": (4, 2)}, "concurrency=2: must be an integer from 4 to"),
        ({"concurrency": "two"}, "concurrency='two': must be a number, or (least, most)"),
        ({"max_concurrent_batches": 1.5}, "max_concurrent_batches=1.5: must be an integer from 1 to"),
        ({"engine_kwargs": {"max_num_seqs": 0}}, "max_num_seqs=0: must be"),
    ],
)
def test_what_is_wrong_is_named(fields, message):
    with pytest.raises(ConfigError) as error:
        JBatchProcessorConfig("model", **fields)
    assert str(error.value).startswith(message)


def test_an_unknown_option_of_the_engine():
    with pytest.raises(TypeError, match="did you mean 'max_num_seqs'"):
        JBatchProcessorConfig("model", engine_kwargs={"max_running_requests": 4})


def test_defaults():
    config = JBatchProcessorConfig("model")
    assert (config.batch_size, config.num_actors, config.gpus_per_actor) == (32, (1, 1), 1)
    on_cpu = JBatchProcessorConfig("model", concurrency=(1, 4), engine_kwargs={"device": "cpu"})
    assert (on_cpu.num_actors, on_cpu.gpus_per_actor) == ((1, 4), 0)
    replicated = JBatchProcessorConfig("model", engine_kwargs={"data_parallel_size": 3})
    assert replicated.gpus_per_actor == 3
    assert JBatchProcessorConfig("model", num_gpus=2).gpus_per_actor == 2
