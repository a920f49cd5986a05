"""Processors in a Ray cluster of this machine."""

import os
import signal

import pytest

from jbatch import LLM, SamplingParams
from jbatch.integrations.ray_data import JBatchProcessorConfig, build_processor
from jbatch.integrations.ray_data.rows import ERROR
from tests.helpers.ray_rows import ENGINE, MODEL, rows_of, workers

ROWS = rows_of(400)


@pytest.fixture(scope="module")
def texts():
    """What the rows get without Ray, by id."""
    with LLM(MODEL, **ENGINE) as llm:
        params = [SamplingParams(**row["sampling_params"]) for row in ROWS]
        outputs = llm.generate([row["prompt"] for row in ROWS], params, use_tqdm=False)
    return {row["id"]: output.outputs[0].text for row, output in zip(ROWS, outputs, strict=True)}


def config(**fields):
    return JBatchProcessorConfig(MODEL, engine_kwargs=ENGINE, id_column="id", num_cpus=1, **fields)


def by_id(rows):
    found = {row["id"]: row["generated_text"] for row in rows}
    assert len(found) == len(rows), "some come twice"
    return found


@pytest.mark.parametrize("batch_size, num_blocks", [(32, 1), (7, 50)])
def test_texts_do_not_depend_on_cuts_or_actors(cluster, texts, batch_size, num_blocks):
    data = cluster.data.from_items(ROWS, override_num_blocks=num_blocks)
    process = build_processor(config(batch_size=batch_size, concurrency=2))
    assert by_id(process(data).take_all()) == texts


def test_before_and_after(cluster, texts):
    data = cluster.data.from_items([{"id": row["id"], "question": row["prompt"]} for row in ROWS[:4]])

    def preprocess(row):
        sampling = {"temperature": 0, "max_tokens": 12}
        return {"prompt": row["question"] if row["id"] else None, "sampling_params": sampling}

    process = build_processor(config(), preprocess, lambda row: {"answer": row["generated_text"]})
    rows = process(data).take_all()
    assert sorted(bool(row[ERROR]) for row in rows) == [False, False, False, True]
    assert all(row["answer"] for row in rows if not row[ERROR])
    (failed,) = [row for row in rows if row[ERROR]]
    assert failed["id"] == 0 and failed["question"] == ROWS[0]["prompt"]


def test_actors_that_are_killed(cluster, texts):
    """Their batches are answered by others, or by themselves once they are back."""
    data = cluster.data.from_items(ROWS, override_num_blocks=1)
    process = build_processor(config(batch_size=8, concurrency=2, max_concurrent_batches=2))
    rows, killed = [], set()
    for row in process(data).iter_rows():
        rows.append(row)
        if len(rows) in (1, 100):
            pid = min(set(workers("Batches")) - killed)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    assert len(killed) == 2
    assert by_id(rows) == texts


def test_rays_own_checkpoints(cluster, texts, tmp_path):
    """Rows that are written are not computed again."""
    from ray.data.checkpoint import CheckpointConfig

    cluster.data.from_items(ROWS[:100]).write_parquet(str(tmp_path / "in"))
    context = cluster.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=str(tmp_path / "done"), delete_checkpoint_on_success=False
    )
    try:
        for _ in range(2):
            data = cluster.data.read_parquet(str(tmp_path / "in"))
            build_processor(config(concurrency=1))(data).write_parquet(str(tmp_path / "out"))
    finally:
        context.checkpoint_config = None
    written = cluster.data.read_parquet(str(tmp_path / "out")).take_all()
    assert by_id(written) == {idx: texts[idx] for idx in range(100)}
