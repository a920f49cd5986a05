"""The actor of a processor, in this process."""

import asyncio

import pyarrow as pa
import pytest

from jbatch import LLM, SamplingParams
from jbatch.errors import JobError
from jbatch.integrations.ray_data import JBatchProcessorConfig
from jbatch.integrations.ray_data.batches import Batches
from jbatch.integrations.ray_data.rows import ERROR
from tests.helpers.ray_rows import ENGINE, MODEL, rows_of

CONFIG = JBatchProcessorConfig(MODEL, engine_kwargs=ENGINE, id_column="id")
AT_ONCE = 8


@pytest.fixture(scope="module")
def batches():
    return Batches(CONFIG)


def answer(batches, rows, batch_size):
    """The answers of rows, in batches of which AT_ONCE are under way, as Ray gives them."""
    tables = [pa.Table.from_pylist(rows[at : at + batch_size]) for at in range(0, len(rows), batch_size)]

    async def run():
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(table):
            async with limit:
                return await batches(table)

        return await asyncio.gather(*map(one, tables))

    return [row for table in asyncio.run(run()) for row in table.to_pylist()]


def test_texts_are_those_of_generate_and_slots_stay_full(batches):
    rows = rows_of(600)
    with LLM(MODEL, **ENGINE) as llm:
        params = [SamplingParams(**row["sampling_params"]) for row in rows]
        outputs = llm.generate([row["prompt"] for row in rows], params, use_tqdm=False)
        whole = llm.engine.summary.slot_use
    answers = answer(batches, rows, batch_size=20)
    assert [row["generated_text"] for row in answers] == [output.outputs[0].text for output in outputs]
    assert batches._llm.engine.summary.slot_use > 0.97 * whole


def test_columns(batches):
    rows = [
        {"id": "a", "prompt": "1+1=", "tokenized_prompt": None, "more": [1.5]},
        {"id": "b", "prompt": None, "tokenized_prompt": None, "more": []},
        {"id": "c", "prompt": None, "tokenized_prompt": [1, 19, 43, 19, 61], "more": [2.5]},
        {"id": None, "prompt": "1+1=", "tokenized_prompt": None, "more": None},
    ]
    answers = answer(batches, [{**row, "generated_text": "of before"} for row in rows], batch_size=4)
    assert [{name: row[name] for name in rows[0]} for row in answers] == rows
    assert [bool(row[ERROR]) for row in answers] == [False, True, False, True]
    assert answers[1][ERROR].startswith("RequestError: prompt=None: a row needs one of")
    assert answers[1]["generated_text"] == "" and answers[1]["generated_tokens"] == []
    assert answers[0]["num_input_tokens"] == 5 and answers[0]["time_taken_llm"] > 0
    assert answers[0]["num_generated_tokens"] == len(answers[0]["generated_tokens"]) > 0


def test_a_batch_without_any_prompt(batches):
    table = asyncio.run(batches(pa.table({"other": [1, 2]})))
    assert [bool(error) for error in table[ERROR].to_pylist()] == [True, True]
    assert asyncio.run(batches(pa.table({"prompt": pa.array([], pa.string())}))).num_rows == 0


class Exited(Exception):
    """In place of the end of a process."""


@pytest.mark.parametrize("has_worked", [True, False])
def test_a_device_that_is_lost(monkeypatch, has_worked):
    def exit_at_once(code):
        raise Exited(code)

    def on_fire(step):
        raise RuntimeError("on fire")

    monkeypatch.setattr("os._exit", exit_at_once)
    batches = Batches(CONFIG)
    if has_worked:
        answer(batches, rows_of(4), batch_size=4)
    monkeypatch.setattr(batches._llm.runner, "submit", on_fire)
    with pytest.raises(Exited if has_worked else JobError):
        answer(batches, rows_of(4), batch_size=4)
