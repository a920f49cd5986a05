"""The loop of a job, inside this process."""

import itertools

import pytest

from jbatch.engine.eta import TokensLeft
from jbatch.engine.intake import derive_seed
from jbatch.errors import ConfigError, JobError, RequestError
from jbatch.jobs import answerer as job_answerer
from jbatch.jobs import loop as job_loop
from jbatch.jobs import non_finite
from jbatch.jobs.loop import WINDOW
from jbatch.seam.step_output import Status
from tests.helpers.job_loop import Kept, answer, error_code, make_engine
from tests.helpers.tokenizers import numbered, wrapped


def test_lines_are_answered_and_counted():
    lines, tokens_left = ({"prompt": "01.02.", "custom_id": "a"}, b"{\n", {"prompt": "03."}), TokensLeft(3, 3)
    ended, results, ledger = answer(*lines, tokens_left=tokens_left)
    assert ended and [(r["custom_id"], r.get("text"), error_code(r)) for r in results] == [
        ("line-2", None, "invalid_json"),
        ("a", "05.11.23.", None),
        ("line-3", "04.09.19.", None),
    ]
    assert ledger.summary.finish_reasons == {"length": 2} and ledger.summary.errors == {"invalid_json": 1}
    assert (ledger.done.num_done, ledger.done.num_errors) == (3, 1)
    assert ledger.done.offsets.tolist() == [-1, 1, 0, 2], "by line number"
    assert tokens_left.left == 0 and ledger.output.num_syncs > 2


def test_a_seed_comes_from_the_line_number(monkeypatch):
    """As from the place in the list of prompts of LLM.generate, whatever ran before."""
    engine, seeds = make_engine(), []
    add = engine.scheduler.add
    monkeypatch.setattr(
        engine.scheduler, "add", lambda request, *key: (seeds.append(request.seed), add(request, *key))[1]
    )
    answer(b"\n", {"prompt": "01."}, b"{}\n", {"prompt": "01."}, {"prompt": "01.", "seed": 7}, engine=engine)
    assert seeds == [derive_seed(5, 1), derive_seed(5, 3), 7]


def test_only_a_window_of_lines_is_read(monkeypatch):
    engine = make_engine()
    most, num_rows = [0], engine.scheduler.config.shape.num_rows

    def count():
        most[0] = max(most[0], engine.num_unfinished)

    ended, results, _ = answer(*[{"prompt": "01."}] * 90, engine=engine, on_step=count)
    assert ended and len(results) == 90 and num_rows < most[0] <= WINDOW * num_rows
    # Each answer has three tokens: the first comes with the prompt, two from decoding. No row is ever idle.
    assert engine.summary.num_steps <= 90 * 3 / num_rows + 2, "the window starves the engine"


def test_wrong_lines_do_not_hold_up_the_others():
    """A million wrong lines between two requests: steps go on meanwhile."""
    steps = []
    wrong = [b"{\n"] * 500
    _, results, _ = answer(
        {"prompt": "01."},
        *wrong,
        {"prompt": "01."},
        on_step=lambda: steps.append(len(output.results)),
        output=(output := Kept()),
    )
    assert len(results) == 502 and max(b - a for a, b in itertools.pairwise(steps)) <= 17


def test_chats_are_encoded_by_the_model():
    chat = {"messages": [{"role": "user", "content": "hi"}]}

    def encode(messages, options):
        assert messages[0]["content"] == "hi" and options.begins_answer
        return [1, 2]

    _, results, _ = answer(chat, encode_chat=encode)
    assert results[0]["text"] == "05.11.23."
    assert error_code(answer(chat)[1][0]) == "no_chat_template"


def test_what_is_missing_here_stops_the_job_and_is_no_result():
    def encode(messages, options):
        raise ConfigError("chat_template", "...", "needs transformers")

    output = Kept()
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(JobError, match="needs transformers"):
        answer({"prompt": "01."}, chat, output=output, encode_chat=encode)
    assert output.results == []


def fail_on(word):
    def fail(messages, options):
        raise ZeroDivisionError(word)

    return fail


def test_what_nobody_expected_of_one_request_is_its_result(monkeypatch):
    tokenizer = wrapped(numbered())
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: encode(text) if text != "66." else 1 // 0)
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    _, results, _ = answer(
        {"prompt": "66."},
        chat,
        {"prompt": "01."},
        engine=make_engine(tokenizer),
        encode_chat=fail_on("template"),
    )
    messages = [(r.get("error") or {}).get("message") for r in results]
    assert messages == [
        "ZeroDivisionError: integer division or modulo by zero",
        "ZeroDivisionError: template",
        None,
    ]
    assert [error_code(r) for r in results] == ["internal_error", "internal_error", None]


def test_an_answer_that_makes_no_result_is_an_error_result(monkeypatch):
    real = job_answerer.success_result

    def strange(line, custom_id, outputs, echoes):
        return {**real(line, custom_id, outputs, echoes), "x": float("nan") if custom_id == "bad" else 0}

    monkeypatch.setattr(job_answerer, "success_result", strange)
    _, results, _ = answer({"prompt": "01.", "custom_id": "bad"}, {"prompt": "01.", "custom_id": "good"})
    assert {r["custom_id"]: error_code(r) for r in results} == {"bad": "internal_error", "good": None}


def test_a_text_that_cannot_be_decoded_is_an_error_result(monkeypatch):
    tokenizer = wrapped(numbered())
    decode = tokenizer.decode

    def fail(token_ids, **options):
        if token_ids[0] == 2:
            raise RequestError("token_ids", token_ids, "cannot be decoded")
        return decode(token_ids, **options)

    monkeypatch.setattr(tokenizer, "decode", fail)
    _, results, _ = answer({"prompt": "01."}, {"prompt": "02."}, engine=make_engine(tokenizer))
    assert {r["custom_id"]: error_code(r) for r in results} == {"line-1": "generation_failed", "line-2": None}


@pytest.mark.parametrize("num_failed, code", [(1, None), (2, "generation_failed")])
def test_samples_that_fail(monkeypatch, num_failed, code):
    """A line is an error where all of its samples are."""
    tokenizer, calls = wrapped(numbered()), []
    decode = tokenizer.decode

    def fail(token_ids, **options):
        calls.append(token_ids)
        if len(calls) <= num_failed:
            raise RequestError("token_ids", token_ids, "cannot be decoded")
        return decode(token_ids, **options)

    monkeypatch.setattr(tokenizer, "decode", fail)
    _, (result,), ledger = answer({"prompt": "01.", "n": 2, "temperature": 1}, engine=make_engine(tokenizer))
    assert error_code(result) == code
    if code is None:
        assert [bool(sample.get("error")) for sample in result["outputs"]] == [True, False]
        assert result["outputs"][0]["finish_reason"] == "error" and result["outputs"][1]["text"]
        assert ledger.summary.finish_reasons == {"error": 1, "length": 1}


@pytest.mark.parametrize("num_good_steps", [0, 20])
def test_a_model_that_gives_nothing_finite_stops_the_job(monkeypatch, num_good_steps):
    monkeypatch.setattr(non_finite, "MAX_NON_FINITE", 5)
    engine, output = make_engine(), Kept()
    submit = engine.runner.submit

    def overflow(step):
        result = submit(step)
        if engine.runner.num_steps > num_good_steps:
            result.status[:], result.num_tokens[:] = Status.NON_FINITE, 0
        return result

    monkeypatch.setattr(engine.runner, "submit", overflow)
    lines = [{"prompt": "01."}] * 30
    if num_good_steps:
        answer(*lines, engine=engine, output=output)
        assert len(output.results) == 30
        assert {error_code(result) for result in output.results} == {None, "generation_failed"}
    else:
        with pytest.raises(JobError, match=r"all of the first 5 .*--dtype bfloat16"):
            answer(*lines, engine=engine, output=output)
        assert [error_code(result) for result in output.results] == ["generation_failed"] * 5


def test_few_long_lines_are_pending(monkeypatch):
    monkeypatch.setattr(job_loop, "MAX_BYTES_PENDING", 100)
    engine, most = make_engine(), []
    lines = [{"prompt": "01.", "max_tokens": 9, "custom_id": f"{n:040}"} for n in range(20)]
    ended, results, _ = answer(*lines, engine=engine, on_step=lambda: most.append(engine.num_unfinished))
    assert ended and len(results) == 20 and max(most) == 2


def test_a_stop_leaves_nothing_running():
    steps = []
    stop = lambda: len(steps) >= 4  # noqa: E731
    ended, results, _ = answer(*[{"prompt": "01."}] * 50, stop=stop, on_step=lambda: steps.append(1))
    assert not ended and len(results) < 50


def test_a_full_disk_leaves_nothing_running():
    with pytest.raises(OSError, match="full"):
        answer(*[{"prompt": "01."}] * 50, output=Kept(fail_at=3))


def test_a_failed_step_is_no_result(monkeypatch):
    engine, output = make_engine(), Kept()
    submit = engine.runner.submit
    monkeypatch.setattr(
        engine.runner, "submit", lambda step: submit(step) if engine.runner.num_steps < 5 else 1 // 0
    )
    with pytest.raises(JobError, match="a step failed: ZeroDivisionError"):
        answer(*[{"prompt": "01."}] * 50, engine=engine, output=output)
    assert all(result.get("error") is None for result in output.results)
