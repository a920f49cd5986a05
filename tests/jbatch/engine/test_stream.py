"""Text deltas: joined they are the text of `generate`, whatever the tokens split; leaving early is clean."""

import random

import pytest
from tokenizers import Regex, decoders

from jbatch.engine.prompts import UncheckedRequest
from jbatch.engine.stream import stream
from jbatch.errors import JBatchError, RequestError
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.sim import fake_runner
from jbatch.sim.fake_runner import FakeRunner
from tests.helpers import tiny_engine
from tests.helpers.schedules import buckets, scheduler_config
from tests.helpers.sizes import sized
from tests.helpers.tokenizer_kinds import KINDS, WINDOWED, tokenizer_of
from tests.helpers.tokenizers import byte_level, numbered, wrapped

VOCAB_SIZE = 500


def make_engine(tokenizer, num_rows=64, **options):
    config = scheduler_config(
        num_rows=num_rows,
        num_pages=1 + 8 * num_rows,
        buckets=buckets((16 * num_rows,), (num_rows,)),
    )
    runner = FakeRunner(config.shape, VOCAB_SIZE)
    options = {"vocab_size": VOCAB_SIZE, "tokenizer": tokenizer, **options}
    return tiny_engine.make_engine(Scheduler(config), runner, **options)


def ask(prompts, params):
    return [UncheckedRequest(str(idx), prompts[idx], params[idx]) for idx in range(len(prompts))]


def is_clean(engine):
    return not engine.has_unfinished and engine.num_unfinished == 0 and engine.scheduler.pool.num_used == 0


def generate(engine, asked):
    """The outputs by request id, as `LLM.generate` gets them."""
    outputs = {}
    for one in asked:
        assert one.add_to(engine) is None
    while engine.has_unfinished:
        outputs |= {output.request_id: output for output in engine.step().outputs}
    return outputs


# A thousand texts.

SCRIPTS = (
    "日本語中文字符漢字",
    "한국어조선말",
    "👩‍👩‍👧👍🏽🇯🇵😀🚀❤️",
    "abc def,.!?\n ",
    "éüñßçą",
    "مرحبا",
    "हिन्दी",
    "\ufffd\u2028\x00",
)


def random_text(rng):
    pieces = []
    for _ in range(rng.randint(1, 6)):
        alphabet = rng.choice(SCRIPTS)
        pieces.append("".join(rng.choices(alphabet, k=rng.randint(1, 5))))
    return "".join(pieces)


def random_params(rng, text, num_tokens):
    """With stop strings that the text holds, at any place; that it nearly holds; that it does not."""
    stop = []
    for _ in range(rng.choice((0, 1, 1, 3))):
        begin = rng.randrange(len(text))
        piece = text[begin : begin + rng.randint(1, 6)]
        stop.append(piece + rng.choice(("", "", "x", "語", "😀")))
    return SamplingParams(
        max_tokens=min(num_tokens, rng.choice((num_tokens, num_tokens, rng.randint(1, num_tokens)))),
        stop=stop,
        min_tokens=0 if rng.random() < 0.7 else 1,
        include_stop_str_in_output=rng.random() < 0.3,
        skip_special_tokens=rng.random() < 0.7,
    )


def follow_script(monkeypatch, scripts):
    """The fake device generates `scripts[idx]` after the prompt [idx // 100, idx % 100], again and again."""

    def next_token(token_ids, vocab_size, banned=(), sample_idx=0):
        script = scripts[100 * token_ids[0] + token_ids[1]]
        return script[(len(token_ids) - 2) % len(script)]

    monkeypatch.setattr(fake_runner, "next_token", next_token)
    return [[idx // 100, idx % 100] for idx in range(len(scripts))]


def random_tokens(rng, tokenizer, text):
    """Of a text; or any at all, special and unknown ones among them, of which many are no characters."""
    if rng.random() < 0.2:
        return rng.choices(range(tokenizer.vocab_size + 2), k=rng.randint(1, 60))
    ids = tokenizer.encode(text)[-100:] or [1]
    if rng.random() < 0.2:
        ids.insert(rng.randrange(len(ids)), tokenizer.eos_token_id or 2)  # also within a character
    return ids[:100]


@pytest.mark.parametrize("kind", KINDS)
def test_deltas_joined_are_the_full_text(monkeypatch, kind):
    num = sized(60, 400)
    rng, tokenizer = random.Random(kind), tokenizer_of(kind)
    texts = [random_text(rng) for _ in range(num)]
    scripts = [random_tokens(rng, tokenizer, text) for text in texts]
    prompts = follow_script(monkeypatch, scripts)
    params = [random_params(rng, *pair) for pair in zip(texts, map(len, scripts), strict=True)]
    engine, asked = make_engine(tokenizer), ask(prompts, params)
    full = generate(engine, asked)

    shown, token_ids, ends = [""] * num, [[] for _ in range(num)], {}
    for delta in stream(engine, asked):
        assert delta.prompt_idx not in ends
        shown[delta.prompt_idx] += delta.text
        token_ids[delta.prompt_idx] += delta.token_ids
        if delta.output is not None:
            ends[delta.prompt_idx] = delta
    assert is_clean(engine) and len(ends) == num

    stopped = 0
    for idx in range(num):
        completion, end = full[str(idx)].outputs[0], ends[idx]
        assert shown[idx] == completion.text == end.output.outputs[0].text
        assert token_ids[idx] == completion.token_ids and end.finish_reason == completion.finish_reason
        skip = params[idx].skip_special_tokens
        plain = tokenizer.decode(completion.token_ids, after=prompts[idx], skip_special_tokens=skip)
        if isinstance(completion.stop_reason, str):
            stopped += 1
            assert plain.startswith(completion.text) or kind in WINDOWED
            included = params[idx].include_stop_str_in_output
            assert completion.text.endswith(completion.stop_reason) or not included
        else:
            assert completion.text == plain
    assert stopped > num / 20 or kind in ("numbered words", "Unigram", *WINDOWED)


def test_the_first_space_and_a_character_begun_in_the_prompt_are_shown(monkeypatch):
    tokenizer = tokenizer_of("sentencepiece")
    ids = [tokenizer._tokenizer.token_to_id(name) for name in ("▁is", "<0xE6>", "<0x97>", "<0xA5>", "▁is")]
    monkeypatch.setattr(fake_runner, "next_token", lambda token_ids, *_, **__: ids[len(token_ids)])
    engine, params = make_engine(tokenizer), SamplingParams(max_tokens=4, logprobs=0)
    deltas = list(stream(engine, ask([ids[:1]], [params])))
    assert [delta.text for delta in deltas] == ["", "", "日", " is"]
    params = SamplingParams(max_tokens=3, stop=" is")
    deltas = list(stream(engine, ask([ids[:2]], [params])))
    assert [delta.text for delta in deltas] == ["", "日", ""] and deltas[-1].finish_reason == "stop"


def test_text_is_shown_as_soon_as_it_is_certain(monkeypatch):
    tokenizer = wrapped(byte_level())
    prompts = follow_script(monkeypatch, [tokenizer.encode("a日😀abcab!")])
    params = SamplingParams(max_tokens=14, stop=["abx", "bcd"])
    deltas = [d.text for d in stream(make_engine(tokenizer), ask(prompts, [params]))]
    assert deltas == ["", "", "", "a日", "", "", "", "😀", "", "", "a", "bc", "", "ab!"]


def test_a_stop_string_that_has_begun_is_shown_where_the_text_ends_before_it(monkeypatch):
    tokenizer = wrapped(byte_level())
    prompts = follow_script(monkeypatch, [tokenizer.encode("xyab")])
    params = SamplingParams(max_tokens=4, stop=["abc"])
    deltas = list(stream(make_engine(tokenizer), ask(prompts, [params])))
    assert [d.text for d in deltas] == ["x", "y", "", "ab"] and deltas[-1].finish_reason == "length"


def test_a_stop_token_is_not_shown(monkeypatch):
    """An ordinary token, and of a sample that ends long before its request does."""
    tokenizer = wrapped(numbered())
    engine = make_engine(tokenizer)
    params = SamplingParams(n=3, max_tokens=20, stop_token_ids=[11, 30])
    deltas = list(stream(engine, ask([[1, 2]], [params])))
    output = next(delta.output for delta in deltas if delta.output is not None)
    assert deltas[-1].output is output and sum(delta.output is not None for delta in deltas) == 1
    for idx in range(3):
        mine = [delta for delta in deltas if delta.sample_idx == idx]
        assert "".join(delta.text for delta in mine) == output.outputs[idx].text
        assert [delta.finish_reason is None for delta in mine] == [True] * (len(mine) - 1) + [False]
        assert [token for delta in mine for token in delta.token_ids] == output.outputs[idx].token_ids
    assert len({len(completion.token_ids) for completion in output.outputs}) > 1
    assert output.outputs[0].stop_reason == 11 and "11" not in output.outputs[0].text


# Requests without text, and that end otherwise.


def test_a_request_that_is_refused_is_one_delta():
    engine = make_engine(wrapped(numbered()))
    asked = ask([[1, 2], "", [1, 2], [1, 2]], [SamplingParams(max_tokens=k) for k in (2, 2, 999, 0)])
    deltas = list(stream(engine, asked))
    by_prompt = [[delta for delta in deltas if delta.prompt_idx == idx] for idx in range(4)]
    assert [len(mine) for mine in by_prompt] == [2, 1, 1, 1]
    assert [mine[-1].finish_reason for mine in by_prompt] == ["length", "error", "error", "length"]
    assert "empty" in by_prompt[1][0].output.error and "999" in by_prompt[2][0].output.error
    assert [mine[-1].output.request_id for mine in by_prompt] == list("0123") and is_clean(engine)


@pytest.mark.parametrize("tokenizer, detokenize", [(True, False), (False, True)])
def test_without_text_there_are_tokens(tokenizer, detokenize):
    engine = make_engine(wrapped(numbered()) if tokenizer else None)
    params = SamplingParams(max_tokens=3, detokenize=detokenize)
    deltas = list(stream(engine, ask([[1, 2]], [params])))
    assert [delta.text for delta in deltas] == ["", "", ""]
    assert [delta.token_ids for delta in deltas] == [[5], [11], [23]]


def test_an_abort_from_elsewhere_ends_its_deltas():
    engine = make_engine(wrapped(numbered()))
    deltas = []
    for delta in stream(engine, ask([[1, 2]], [SamplingParams(max_tokens=99)])):
        deltas.append(delta)
        if len(deltas) == 3:
            engine.abort("0")
    assert deltas[-1].finish_reason == "abort" and deltas[-1].output.outputs[0].finish_reason == "abort"
    assert "".join(delta.text for delta in deltas) == deltas[-1].output.outputs[0].text
    assert is_clean(engine)


def test_a_text_that_cannot_be_decoded_ends_with_its_error(monkeypatch):
    library = numbered()
    library.decoder = decoders.Replace(Regex("#"), "")  # of which no rule of bytes is known
    tokenizer = wrapped(library)
    real = tokenizer.decode_once

    def decode_once(token_ids, **options):
        if 23 in token_ids:
            raise RequestError("token_ids", token_ids, "cannot be decoded")
        return real(token_ids, **options)

    monkeypatch.setattr(tokenizer, "decode_once", decode_once)
    engine = make_engine(tokenizer)
    deltas = list(stream(engine, ask([[1, 2]], [SamplingParams(max_tokens=5)])))
    assert [delta.text for delta in deltas] == ["05.", "11.", "", "", ""]
    assert deltas[-1].finish_reason == "error" and "cannot be decoded" in deltas[-1].output.error


# Leaving early.

LONG = SamplingParams(max_tokens=100)


@pytest.mark.parametrize("after", [0, 1, 5, 20])
def test_leaving_early_aborts_and_leaves_the_engine_clean(after):
    engine = make_engine(wrapped(numbered()), num_rows=2)
    asked = ask([[1, 2]] * 5, [LONG] * 5)
    steps = stream(engine, asked)
    for _ in range(after):
        next(steps)
    assert (engine.num_unfinished > 0) == (after > 0)
    num_steps = engine.runner.num_steps
    steps.close()
    assert engine.runner.num_steps == num_steps  # nothing was computed to the end
    assert is_clean(engine) and len(generate(engine, asked)) == 5

    for delta in stream(engine, asked):
        if delta.token_ids:
            break
    assert is_clean(engine)


def test_a_step_that_fails_raises_and_leaves_the_engine_clean():
    engine = make_engine(wrapped(numbered()))
    steps = stream(engine, ask([[1, 2]] * 2, [LONG] * 2))
    next(steps)
    runner, engine.pipeline.runner = engine.runner, None
    with pytest.raises(AttributeError):
        list(steps)
    engine.pipeline.runner = runner
    assert is_clean(engine)


def test_one_stream_at_a_time():
    engine = make_engine(wrapped(numbered()))
    steps = stream(engine, ask([[1, 2]], [LONG]))
    next(steps)
    with pytest.raises(JBatchError, match="1 unfinished"):
        next(stream(engine, ask([[1, 2]], [LONG])))
    assert len(list(steps)) == 99
