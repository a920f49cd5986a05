"""The same model in transformers (torch, float32) and in jbatch, from the same directory."""

import json
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jbatch import LLM, SamplingParams
from jbatch.device.model import abstract_params
from jbatch.device.rotary import cos_sin, frequencies
from jbatch.model_dir.config_json import load_config
from tests.helpers.paged import PagedModel
from tests.helpers.sizes import sized
from weights.demo.tasks import demo_prompts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)  # such small models only spin on more

NEAR_TIE = 1e-4  # two tokens this close (natural log) may change places between float32 programs
MAX_DIFF = 1e-3  # of log-probabilities
NUM_PROMPTS, MAX_TOKENS = sized(32, 64), 64
LONG = 1100

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 8.0}
SCALED = {"original_max_position_embeddings": 256}  # so that prompts of 1100 tokens see the scaling
MHA = {"num_key_value_heads": 4}

CASES = {
    "llama2": ("Llama", MHA),
    "llama3, wide heads": (
        "Llama",
        {"rope_parameters": {**LLAMA3, **SCALED, "rope_theta": 500000.0}, "eos_token_id": [2, 7],
         "head_dim": 32, "num_attention_heads": 8},
    ),
    "linear, biases": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
         "attention_bias": True, "mlp_bias": True},
    ),
    "yarn": (
        "Llama",
        {"rope_parameters": {**YARN, **SCALED, "rope_theta": 10000.0, "mscale": 0.7, "mscale_all_dim": 1.3,
                             "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}},
    ),
    "tied, one KV head": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32, "rope_parameters": {**YARN, **SCALED, "rope_theta": 1e6}}),
}  # fmt: skip


# Every rotary scaling and every feature of a model once; the others in the long run.
COVERING = ("llama3, wide heads", "linear, biases", "tied, one KV head", "qwen3")


class Pair(NamedTuple):
    """One directory, loaded twice."""

    model_dir: object
    reference: object  # of transformers
    llm: LLM
    paged: PagedModel


def make_reference(family, options):
    """A model whose norms and biases are random too, so that one in the wrong place shows."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        **{
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.15,
            **options,
        },
    )
    torch.manual_seed(1)
    reference = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.15 * torch.randn_like(parameter))
    return reference


@pytest.fixture(scope="module", params=sized(COVERING, tuple(CASES)), ids=str)
def pair(request, tmp_path_factory):
    family, options = CASES[request.param]
    model_dir = tmp_path_factory.mktemp("model")
    reference = make_reference(family, options)
    reference.save_pretrained(model_dir)
    with LLM(model_dir, dtype="float32", device="cpu", max_model_len=176, max_num_seqs=8, page_size=16,
             num_pages=41, decode_buckets=(8,), token_buckets=(128,)) as llm:  # fmt: skip
        yield Pair(model_dir, reference, llm, PagedModel(llm.model_config, _params(llm), LONG))


def _params(llm):
    return dict(zip(abstract_params(llm.model_config), llm.runner._params.leaves, strict=True))


def reference_log_probs(reference, sequences):
    """[len, vocab] of each sequence: one padded batch, whose padding comes last and so changes nothing."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences])
    with torch.no_grad():
        log_probs = torch.log_softmax(reference(ids).logits, -1).numpy()
    return [row[: len(s)] for row, s in zip(log_probs, sequences, strict=True)]


def top_2_gap(log_probs):
    second, first = np.partition(log_probs, -2)[-2:]
    return first - second


def check_greedy(token_ids, ours, theirs):
    """Each token is the likeliest to the reference, or a near-tie to both. Returns the near-ties."""
    ties = 0
    for token_id, our_row, their_row in zip(token_ids, ours, theirs, strict=True):
        if token_id != their_row.argmax():
            gaps = (top_2_gap(our_row), top_2_gap(their_row), their_row.max() - their_row[token_id])
            assert max(gaps) <= NEAR_TIE, f"token {token_id}, not {their_row.argmax()}; gaps {gaps}"
            ties += 1
    return ties


def mixed_prompts(vocab_size, num=NUM_PROMPTS):
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, n).tolist() for n in (1, 2, *rng.integers(3, 101, num - 2))]


def test_greedy_tokens_and_log_probs(pair):
    """64 tokens of each prompt through a pool too small for eight of them: the next token of every prefix
    is the reference's, which by induction is what its own greedy search would give."""
    prompts = mixed_prompts(128)
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    outputs = pair.llm.generate(prompts, params)
    summary = pair.llm.engine.summary
    assert summary.num_preempted > 0 and summary.recomputed > 0

    answers = [output.outputs[0].token_ids for output in outputs]
    assert {len(answer) for answer in answers} == {MAX_TOKENS}
    sequences = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    theirs = reference_log_probs(pair.reference, sequences)
    ours = pair.paged.log_probs(sequences, num_prefilled=[len(prompt) for prompt in prompts])
    ties = 0
    for prompt, answer, our, their in zip(prompts, answers, ours, theirs, strict=True):
        begin = len(prompt) - 1
        ties += check_greedy(answer, our[begin:], their[begin:])
    worst = max(np.abs(our - their).max() for our, their in zip(ours, theirs, strict=True))
    print(f"largest difference {worst:.1e}, {ties} near-ties, {summary.num_preempted} preemptions")
    assert worst <= MAX_DIFF


def test_long_prompts(pair):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 128, length).tolist() for length in (LONG, 300, 1030)]
    theirs = reference_log_probs(pair.reference, prompts)
    ours = pair.paged.log_probs(prompts)
    worst = max(np.abs(our - their).max() for our, their in zip(ours, theirs, strict=True))
    print(f"largest difference {worst:.1e}")
    assert worst <= MAX_DIFF


def test_both_spellings_of_the_rotary_settings(pair, tmp_path):
    """transformers 5 writes rope_parameters, all before it rope_theta and rope_scaling."""
    new = json.loads((pair.model_dir / "config.json").read_text())
    rope = new.pop("rope_parameters")
    old = {**new, "rope_theta": rope.pop("rope_theta"), "torch_dtype": new["dtype"]}
    if rope["rope_type"] != "default":
        rope["type"] = rope.pop("rope_type")
        old["rope_scaling"] = rope
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert load_config(tmp_path) == load_config(pair.model_dir)


# Rotary tables.

ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {**LLAMA3, **SCALED},
    "yarn": {**YARN, **SCALED},
    "yarn, its own attention factor": {**YARN, **SCALED, "attention_factor": 0.8},
    "yarn, mscale": {**YARN, **SCALED, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn, not truncated": {**YARN, **SCALED, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
}


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("rope", ROPES)
def test_rotary_tables(rope, theta, tmp_path):
    """To position 4095. The angle itself is rounded to float32 there, by up to 2e-4 in either library."""
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=4096,
        rope_parameters={**ROPES[rope], "rope_theta": theta},
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    parsed = load_config(tmp_path)
    reference = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    np.testing.assert_allclose(frequencies(parsed.rope, 64), reference.inv_freq.numpy(), rtol=1e-6)

    theirs = reference(torch.zeros(1), torch.arange(4096)[None])
    for ours, their in zip(cos_sin(jnp.arange(4096), parsed.rope, 64), theirs, strict=True):
        diff = np.abs(np.asarray(ours) - their[0, :, :32].numpy())
        assert diff[:64].max() <= 1e-5 and diff.max() <= 1e-3


# The model that ships.

DEMO = Path(__file__).parents[2] / "weights" / "demo"


@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model is not trained yet")
def test_demo_model():
    """Prompts on 4 slots: each answer, to its end of sequence, is the reference's greedy one."""
    reference = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    prompts = [example.prompt for example in demo_prompts(NUM_PROMPTS, seed=1)]
    with LLM(DEMO, dtype="float32", device="cpu", max_num_seqs=4, max_model_len=256, page_size=16,
             num_pages=41, decode_buckets=(4,), token_buckets=(256,)) as llm:  # fmt: skip
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=48))
        prompts = [output.prompt_token_ids for output in outputs]
        answers = [output.outputs[0].token_ids for output in outputs]
        sequences = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
        paged = PagedModel(llm.model_config, _params(llm), 256)
        ours = paged.log_probs(sequences, num_prefilled=[len(prompt) for prompt in prompts])
    theirs = reference_log_probs(reference, sequences)
    for prompt, answer, our, their in zip(prompts, answers, ours, theirs, strict=True):
        check_greedy(answer, our[len(prompt) - 1 :], their[len(prompt) - 1 :])
        np.testing.assert_allclose(our, their, atol=MAX_DIFF)
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
