"""From lines to results: several prompts in one line, prompts that are shown, what OpenAI's client reads."""

import json

import pytest

from jbatch.engine.eta import TokensLeft
from jbatch.engine.intake import derive_seed
from jbatch.errors import RequestError
from jbatch.jobs.loop import WINDOW
from jbatch.sim.fake_runner import continuation
from tests.helpers.job_loop import ReportingRunner, answer, make_engine
from tests.helpers.jsonl_fuzz import batch_line
from tests.helpers.jsonl_lines import chat, completions
from tests.helpers.schedules import VOCAB_SIZE
from tests.helpers.tokenizers import numbered, wrapped


def body_of(result):
    assert result["error"] is None and result["response"]["status_code"] == 200
    return result["response"]["body"]


def test_the_prompts_of_a_line_are_answered_in_order():
    """Of different lengths, so that they do not end in order."""
    _, results, ledger = answer(
        completions(prompt=["01.02.", "03.", [1]], n=2, temperature=1, max_tokens=4),
        {"prompt": "03.", "custom_id": "alone"},
    )
    by_id = {result["custom_id"]: result for result in results}
    body = body_of(by_id["a-1"])
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    for prompt_idx, prompt in enumerate([[1, 2], [3], [1]]):
        for sample_idx in range(2):
            expected = continuation(prompt, 4, VOCAB_SIZE, [], sample_idx=sample_idx)
            text = body["choices"][2 * prompt_idx + sample_idx]["text"]
            assert text == "".join(f"{token:02}." for token in expected)
    assert body["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 24,
        "total_tokens": 28,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (ledger.summary.num_results, ledger.summary.output_tokens) == (2, 24 + 3)
    assert ledger.summary.finish_reasons == {"length": 7}


def test_a_line_says_how_much_of_its_prompt_was_cached_and_shares_by_its_salt():
    engine = make_engine()
    prompt = [7] * (2 * engine.scheduler.pool.page_size + 1)
    found = []
    for salt in (None, None, "a", "a"):
        line = {"prompt_token_ids": prompt, "cache_salt": salt, "max_tokens": 1, "temperature": 0}
        _, (result,), _ = answer(line, engine=engine)
        found.append(result["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert found == [0, len(prompt) - 1, 0, len(prompt) - 1]


def test_the_time_left_goes_by_what_is_predicted_of_a_line(monkeypatch):
    left, expected = TokensLeft(mean_bound=8, num_lines=2), []
    line = {"prompt": "01.", "max_tokens": 8}
    monkeypatch.setattr(left, "begin", lambda *line: expected.append(line))
    answer(line | {"n": 2, "predicted_len": 3}, line, tokens_left=left)
    assert expected == [(16, 6), (8, 8)]


def test_each_prompt_of_a_line_has_a_seed_of_its_own(monkeypatch):
    """The first one's is that of a line with one prompt."""
    engine, seeds = make_engine(), []
    add = engine.scheduler.add
    monkeypatch.setattr(
        engine.scheduler, "add", lambda request, *key: (seeds.append(request.seed), add(request, *key))[1]
    )
    answer(b"\n", completions(prompt=["01.", "01.", "01."]), {"prompt": "01."}, engine=engine)
    assert seeds == [
        derive_seed(5, 1),
        derive_seed(5, 1 + 2**32),
        derive_seed(5, 1 + 2**33),
        derive_seed(5, 2),
    ]


@pytest.mark.parametrize(
    "prompts, fields, message, code",
    [
        (["01.", "", "02."], {}, "prompt[1]='': must not be empty", "empty_prompt"),
        ([[1], [2], [999]], {}, "prompt[2]=999: must be from 0 to 96", "invalid_request"),
        (["01.", "01." * 200], {}, "prompt[1]=203: 200 prompt tokens + 3 to generate", "context_length"),
        (["01.", ""], {"max_tokens": 0}, "prompt[1]='': must not be empty", "empty_prompt"),
        (["01.", "02."], {"stop_token_ids": [999]}, "stop_token_ids=999: must be from", "invalid_request"),
    ],
)
def test_one_bad_prompt_refuses_its_line_by_its_index(prompts, fields, message, code):
    good = [{"prompt": "01.", "custom_id": f"good {n}"} for n in range(2)]
    _, results, ledger = answer(good[0], completions(prompt=prompts, **fields), good[1])
    by_id = {result["custom_id"]: result for result in results}
    assert len(results) == 3 and all(by_id[f"good {n}"]["text"] == "02.05.11." for n in range(2))
    error = by_id["a-1"]["response"]["body"]["error"]
    assert error["message"].startswith(message) and error["code"] == code
    assert error["param"] == message.partition("=")[0]
    assert (ledger.done.num_done, ledger.done.num_errors) == (3, 1)


def test_a_prompt_that_fails_later_is_named_too(monkeypatch):
    tokenizer = wrapped(numbered())
    decode = tokenizer.decode

    def fail(token_ids, **options):
        if token_ids[0] == 4:  # what follows 3
            raise RequestError("token_ids", token_ids, "cannot be decoded")
        return decode(token_ids, **options)

    monkeypatch.setattr(tokenizer, "decode", fail)
    _, (result,), _ = answer(completions(prompt=["01.", "03."]), engine=make_engine(tokenizer))
    error = result["response"]["body"]["error"]
    assert result["response"]["status_code"] == 500 and error["type"] == "server_error"
    assert error["message"].startswith("prompt[1]: token_ids=[4, ") and error["code"] == "generation_failed"


def test_a_window_counts_prompts(monkeypatch):
    engine = make_engine()
    most, room = [], WINDOW * engine.scheduler.config.shape.num_rows
    lines = [{**completions(prompt=["01."] * 5), "custom_id": str(n)} for n in range(40)]
    _, results, _ = answer(*lines, engine=engine, on_step=lambda: most.append(engine.num_unfinished))
    assert len(results) == 40 and room - 5 < max(most) < room + 5


def test_a_line_of_many_prompts_that_is_stopped_leaves_nothing_running():
    steps = []
    line = completions(prompt=["01."] * 100)
    ended, results, _ = answer(line, stop=lambda: len(steps) >= 4, on_step=lambda: steps.append(1))
    assert not ended and results == []


@pytest.mark.parametrize(
    "prompt, fields, shown",
    [
        ("01.02.", {}, "01.02."),
        ([1, 2], {}, "01.02."),
        ("01.02.01.02.", {"truncate_prompt_tokens": 2}, "01.02."),
    ],
)
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_an_echo_is_in_front_of_the_answer(prompt, fields, shown, max_tokens):
    _, (result,), _ = answer(completions(prompt=prompt, echo=True, max_tokens=max_tokens, **fields))
    (choice,) = body_of(result)["choices"]
    assert choice["text"] == shown + "05.11.23."[: 3 * max_tokens] and choice["finish_reason"] == "length"
    usage = {
        "prompt_tokens": 2,
        "completion_tokens": max_tokens,
        "total_tokens": 2 + max_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert body_of(result)["usage"] == usage


def test_an_echo_has_log_probabilities_of_the_prompt_too():
    """The first token follows none; the others have as many alternatives as the answer's."""
    lines = [completions(prompt="01.02.", echo=True, logprobs=2, max_tokens=n) for n in (0, 1)]
    lines = [{**line, "custom_id": str(n)} for n, line in enumerate(lines)]
    lines.append({**lines[1], "custom_id": "2", "body": {**lines[1]["body"], "prompt_logprobs": 1}})
    _, results, _ = answer(*lines, engine=make_engine(runner=ReportingRunner))
    bodies = {result["custom_id"]: body_of(result) for result in results}
    tops = {"03.": -1.0, "04.": -2.0}
    logprobs = bodies["1"]["choices"][0]["logprobs"]
    assert bodies["1"]["choices"][0]["text"] == "01.02.05."
    assert logprobs == {
        "tokens": ["01.", "02.", "05."],
        "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"02.": -0.5, **tops}, {"05.": -0.5, **tops}],
        "text_offset": [0, 3, 6],
    }
    scored = bodies["0"]["choices"][0]
    assert scored["text"] == "01.02." and scored["logprobs"]["tokens"] == ["01.", "02."]
    assert "prompt_logprobs" not in bodies["1"], "nobody asked for them"
    (first, second) = bodies["2"]["prompt_logprobs"]
    assert first is None and list(second) == ["2", "3"] and bodies["2"]["choices"][0]["logprobs"] == logprobs


# What OpenAI's client reads.

TOOL = {"type": "function", "function": {"name": "f"}}
OF_COMPLETIONS = [
    {},
    {"model": "m", "n": 3, "temperature": 1},
    {"prompt": ["01.", [1, 2], "03."], "n": 2, "temperature": 1, "seed": 3},
    {"logprobs": 0},
    {"logprobs": 3, "logprob_token_ids": [7], "prompt_logprobs": 2},
    {"prompt": ["01.", "02."], "logprobs": 1, "prompt_logprobs": 2},
    {"prompt": [5, 6], "echo": True, "max_tokens": 0},
    {"stop": "11.", "include_stop_str_in_output": True},
    {"truncate_prompt_tokens": 1, "max_tokens": None},
]
OF_CHATS = [
    {},
    {"n": 2, "temperature": 1, "max_completion_tokens": 2},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 3, "logprob_token_ids": [7], "prompt_logprobs": 0},
    {
        "tools": [TOOL],
        "tool_choice": "auto",
        "chat_template_kwargs": {"x": 1},
        "continue_final_message": True,
    },
    {"max_tokens": 0},
]
REFUSED = [
    completions(temperature=-1),
    completions(prompt=["01.", ""]),
    chat(messages=[{"role": "user"}]),
    chat(messages=[{"role": "user", "content": "no template"}]),
    completions(max_tokens=1000),
    {**completions(), "n": 2},
]


def answers_of(*lines):
    """The results of lines in their order, with ids of their own."""

    def encode(messages, options):
        if messages[0]["content"] == "no template":
            raise RequestError("messages", "...", "there is none", code="no_chat_template")
        return [1, 2]

    lines = [{**line, "custom_id": str(number)} for number, line in enumerate(lines)]
    _, results, _ = answer(*lines, engine=make_engine(runner=ReportingRunner), encode_chat=encode)
    return sorted(results, key=lambda result: int(result["custom_id"]))


def test_every_answer_is_what_openais_client_reads():
    types = pytest.importorskip("openai.types")
    chats = pytest.importorskip("openai.types.chat")
    urls = ("/v1/completions", "/completions")
    lines = [batch_line(urls[n % 2], **{"prompt": "01.02.", **body}) for n, body in enumerate(OF_COMPLETIONS)]
    lines += [chat(**body) for body in OF_CHATS]
    lines.append({**chat(), "url": "/chat/completions"})
    results = answers_of(*lines)
    assert len(results) == len(lines)
    for line, result in zip(lines, results, strict=True):
        form = chats.ChatCompletion if "chat" in line["url"] else types.Completion
        read = form.model_validate(body_of(result), strict=True)
        num_prompts = len(line["body"]["prompt"]) if isinstance(line["body"].get("prompt", ""), list) else 1
        num_prompts = 1 if line["body"].get("prompt") == [5, 6] else num_prompts
        assert [choice.index for choice in read.choices] == list(
            range(num_prompts * line["body"].get("n", 1))
        )
        assert read.usage.total_tokens == read.usage.prompt_tokens + read.usage.completion_tokens


def test_an_echo_with_log_probabilities_differs_from_the_clients_type_in_two_nulls():
    """OpenAI's own answers have them, and its types do not: nothing comes before a prompt's first token."""
    pydantic, types = pytest.importorskip("pydantic"), pytest.importorskip("openai.types")
    (result,) = answers_of(completions(prompt="01.02.", echo=True, logprobs=1))
    with pytest.raises(pydantic.ValidationError) as error:
        types.Completion.model_validate(body_of(result), strict=True)
    places = [each["loc"][-2:] for each in error.value.errors()]
    assert places == [("token_logprobs", 0), ("top_logprobs", 0)]


def test_a_sample_that_failed_has_no_choice(monkeypatch):
    """There is no finish_reason for it that OpenAI's client knows."""
    types, tokenizer, calls = pytest.importorskip("openai.types"), wrapped(numbered()), []
    decode = tokenizer.decode

    def fail(token_ids, **options):
        calls.append(token_ids)
        if len(calls) == 1:
            raise RequestError("token_ids", token_ids, "cannot be decoded")
        return decode(token_ids, **options)

    monkeypatch.setattr(tokenizer, "decode", fail)
    line = completions(prompt="01.", n=3, temperature=1)
    _, (result,), ledger = answer(line, engine=make_engine(tokenizer))
    body = body_of(result)
    assert [choice["index"] for choice in body["choices"]] == [1, 2]
    assert [error["index"] for error in body["errors"]] == [0] and "decoded" in body["errors"][0]["message"]
    types.Completion.model_validate(body, strict=True)
    assert ledger.done.num_errors == 0


def test_every_refusal_is_an_error_that_openais_client_reads():
    shared = pytest.importorskip("openai.types.shared")
    results = answers_of(*REFUSED)
    for number, result in enumerate(results):
        response = result["response"]
        assert result["error"] is None and response["status_code"] == 400, json.dumps(result)
        read = shared.ErrorObject.model_validate(response["body"]["error"], strict=True)
        assert read.type == "invalid_request_error" and response["body"]["error"]["line"] == number + 1
    codes = [result["response"]["body"]["error"]["code"] for result in results]
    assert codes == [
        *("invalid_request", "empty_prompt", "invalid_request", "no_chat_template"),
        *("context_length", "unknown_field"),
    ]
