"""Log-probabilities, penalties and biases against transformers (torch, float32), token by token."""

from typing import NamedTuple

import numpy as np
import pytest

from jbatch import LLM, SamplingParams
from jbatch.engine.intake import bad_word_ids
from jbatch.host.limits import StepLimits
from tests.helpers.tokenizers import numbered, save

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)

MAX_DIFF = 1e-3  # of log-probabilities
NEAR_TIE = 1e-3  # of processed logits
VOCAB, MAX_MODEL_LEN = 128, 176


class Pair(NamedTuple):
    """One directory, loaded twice."""

    reference: object  # of transformers
    llm: LLM


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Its prefill steps have two blocks of positions, and its pool is too small for all rows."""
    model_dir = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(1)
    reference = transformers.LlamaForCausalLM(config).eval()
    reference.save_pretrained(model_dir)
    save(numbered(VOCAB), model_dir)
    with LLM(model_dir, dtype="float32", device="cpu", max_model_len=MAX_MODEL_LEN, max_num_seqs=4,
             page_size=16, num_pages=14, decode_buckets=(4,), token_buckets=(192,),
             samplers=("extended",)) as llm:  # fmt: skip
        yield Pair(reference, llm)


def reference_logits(reference, token_ids):
    """[len, vocab]."""
    with torch.no_grad():
        return reference(torch.tensor([token_ids])).logits[0]


def prompts_of(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


def check_entry(entry, row, token_id, num_top):
    """Of one position: `row` has the reference's log-probabilities, in order or not."""
    assert next(iter(entry)) == token_id
    worst = max(abs(found.logprob - row[token]) for token, found in entry.items())
    likeliest = np.sort(row)[::-1]
    for found in entry.values():
        if found.rank is not None:
            assert abs(likeliest[found.rank - 1] - found.logprob) <= 2 * MAX_DIFF
    by_rank = sorted(found.rank for found in entry.values() if found.rank is not None)
    assert by_rank[:num_top] == list(range(1, num_top + 1))
    return worst


@pytest.mark.parametrize("chunk", [16, 48, 192])
def test_log_probs(pair, chunk):
    """Of generated tokens, sampled ones too, and of prompts: whatever the chunks' borders are, and where
    sequences are preempted and computed again."""
    prompts = prompts_of(1, 2, 8, 9, 47, 48, 49, 97, 100, 130)
    params = [
        SamplingParams(temperature=idx % 2, seed=idx, max_tokens=44, ignore_eos=True, logprobs=idx % 4,
                       prompt_logprobs=idx % 3, logprob_token_ids=[7, 100][: idx % 3])
        for idx in range(len(prompts))
    ]  # fmt: skip
    llm, default = pair.llm, pair.llm.engine
    llm.engine = llm.new_engine(limits=lambda view: StepLimits(chunk, 4))
    try:
        outputs = llm.generate(prompts, params)
        assert llm.engine.summary.num_preempted > 0
    finally:
        llm.engine = default
    worst = []
    for prompt, one, output in zip(prompts, params, outputs, strict=True):
        (completion,) = output.outputs
        token_ids = prompt + completion.token_ids
        rows = torch.log_softmax(reference_logits(pair.reference, token_ids), -1).numpy()
        found = [*output.prompt_logprobs, *completion.logprobs]
        assert found[0] is None and len(found) == len(token_ids)
        for position, entry in enumerate(found[1:], start=1):
            num_top = one.logprobs if position >= len(prompt) else one.prompt_logprobs
            worst.append(check_entry(entry, rows[position - 1], token_ids[position], num_top))
        assert all(set(one.logprob_token_ids) <= set(entry) for entry in completion.logprobs)
        sum_of_rows = rows[np.arange(len(prompt) - 1, len(token_ids) - 1), completion.token_ids].sum()
        assert abs(completion.cumulative_logprob - sum_of_rows) <= MAX_DIFF * 44
    print(f"largest difference {max(worst):.1e} at {len(worst)} positions")
    assert max(worst) <= MAX_DIFF


def test_a_prompt_that_fills_the_context_is_scored(pair):
    """With max_tokens=0: nothing is generated, and the prompt may be as long as the context."""
    prompts = prompts_of(MAX_MODEL_LEN, 1, 30, MAX_MODEL_LEN, 129)
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    for prompt, output in zip(prompts, pair.llm.generate(prompts, params), strict=True):
        (completion,) = output.outputs
        assert (completion.token_ids, completion.text, completion.finish_reason) == ([], "", "length")
        assert output.error is None and completion.logprobs is None and output.prompt_logprobs[0] is None
        rows = torch.log_softmax(reference_logits(pair.reference, prompt), -1).numpy()
        for position, entry in enumerate(output.prompt_logprobs[1:], start=1):
            assert check_entry(entry, rows[position - 1], prompt[position], 1) <= MAX_DIFF


# Penalties, biases, bans.


class Additive:
    """Presence and frequency penalties as OpenAI's documentation defines them; transformers has none."""

    def __init__(self, prompt_len, presence, frequency):
        self.prompt_len, self.presence, self.frequency = prompt_len, presence, frequency

    def __call__(self, input_ids, scores):
        counts = torch.bincount(input_ids[0, self.prompt_len :], minlength=VOCAB)
        return scores - self.frequency * counts - self.presence * (counts > 0)


def processors(params, prompt_len, tokenizer):
    """Transformers' own, in the order of jbatch."""
    made = []
    if params.allowed_token_ids:
        made.append(
            transformers.PrefixConstrainedLogitsProcessor(lambda *_: list(params.allowed_token_ids), 1)
        )
    if params.bad_words:
        words = [list(word) for word in bad_word_ids(params, tokenizer, VOCAB)]
        made.append(transformers.NoBadWordsLogitsProcessor(words, eos_token_id=None))
    if params.min_tokens:
        made.append(
            transformers.MinNewTokensLengthLogitsProcessor(
                prompt_len, params.min_tokens, list(params.stop_token_ids), device="cpu"
            )
        )
    if params.logit_bias:
        biases = {(token,): float(bias) for token, bias in params.logit_bias.items()}
        made.append(transformers.SequenceBiasLogitsProcessor(biases))
    if params.repetition_penalty != 1:
        made.append(transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    made.append(Additive(prompt_len, params.presence_penalty, params.frequency_penalty))
    return transformers.LogitsProcessorList(made)


GREEDY = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
OPTIONS = {
    "repetition": {"repetition_penalty": 1.7},
    "repetition below 1": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.1},
    "frequency": {"frequency_penalty": 0.7},
    "negative": {"frequency_penalty": -0.4, "presence_penalty": -0.3},
    "bias": {"logit_bias": {3: 2.5, 50: -100, 90: 1.25}},
    "allowed": {"allowed_token_ids": [1, 5, 9, 64, 100, 127]},
    "stop": {"stop_token_ids": [*range(0, 128, 8)], "min_tokens": 40},
    "all": {
        "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.2, "min_tokens": 20,
        "logit_bias": {3: 5.0, 9: 3}, "allowed_token_ids": [*range(0, 128, 3)], "stop_token_ids": [9, 33],
    },
}  # fmt: skip


def check_tokens(pair, prompt, params, token_ids):
    """Each is the likeliest to the reference's processors after the same tokens, or a near-tie."""
    chain = processors(params, len(prompt), pair.llm.engine.tokenizer)
    rows = reference_logits(pair.reference, prompt + token_ids)
    for end, token_id in enumerate(token_ids, start=len(prompt)):
        prefix = torch.tensor([(prompt + token_ids)[:end]])
        scores = chain(prefix, rows[end - 1 : end].clone())[0]
        assert scores.max() - scores[token_id] <= NEAR_TIE, f"token {end - len(prompt)} of {params}"


def test_processors(pair):
    """Many requests at once, each with its own, and preempted."""
    prompts = prompts_of(*[20 + 3 * idx for idx in range(len(OPTIONS))])
    params = [SamplingParams(**{**GREEDY, **options}) for options in OPTIONS.values()]
    before = pair.llm.engine.summary.num_preempted
    outputs = pair.llm.generate(prompts, params)
    assert pair.llm.engine.summary.num_preempted > before
    plain = pair.llm.generate(prompts, SamplingParams(**GREEDY))
    for prompt, one, output, other in zip(prompts, params, outputs, plain, strict=True):
        (completion,) = output.outputs
        check_tokens(pair, prompt, one, completion.token_ids)
        assert completion.token_ids != other.outputs[0].token_ids, "the options changed nothing"
        assert len(completion.token_ids) == 40 or completion.finish_reason == "stop"


def test_bad_words(pair):
    """Tokens and runs of tokens that the model would else generate, one of them begun by the prompt."""
    prompts = prompts_of(30, 8, 61, 44)
    plain = [one.outputs[0].token_ids for one in pair.llm.generate(prompts, SamplingParams(**GREEDY))]
    params = []
    for prompt, ids in zip(prompts, plain, strict=True):
        runs = [[ids[3]], ids[7:9], ids[10:13], ids[20:28], [prompt[-1], ids[0]]]
        words = ["".join(f"{token:02d}." for token in run) for run in runs]
        params.append(SamplingParams(**GREEDY, bad_words=words))
    for prompt, one, ids, output in zip(
        prompts, params, plain, pair.llm.generate(prompts, params), strict=True
    ):
        (completion,) = output.outputs
        assert completion.token_ids[0] != ids[0]
        check_tokens(pair, prompt, one, completion.token_ids)
        assert not any(word in completion.text for word in one.bad_words)
