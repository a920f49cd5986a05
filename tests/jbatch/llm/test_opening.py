"""What is opened, and what is refused."""

import asyncio
import json

import jax
import pytest

from jbatch import LLM, SamplingParams
from jbatch.errors import ConfigError, JBatchError
from tests.helpers.hf_checkpoint import tiny, write_checkpoint
from tests.helpers.small_llm import GREEDY, SMALL, ids_of
from weights import WeightsError


def test_without_a_tokenizer(tmp_path):
    write_checkpoint(tmp_path, seed=3)
    with LLM(tmp_path, **SMALL) as llm:
        assert llm.get_tokenizer() is None
        stop = SamplingParams(stop="a", max_tokens=3)
        by_ids, by_text, with_stop = llm.generate([[5, 6], "text", [5, 6]], [GREEDY, GREEDY, stop])
        assert len(by_ids.outputs[0].token_ids) == 6 and by_ids.outputs[0].text == ""
        for output in (by_text, with_stop):
            assert output.outputs[0].finish_reason == "error" and "no tokenizer" in output.error


def test_a_tokenizer_from_elsewhere(tmp_path, model_dir):
    write_checkpoint(tmp_path, seed=3)
    with LLM(tmp_path, tokenizer=model_dir, **SMALL) as llm:
        assert llm.generate("05.06.", GREEDY)[0].prompt_token_ids == [5, 6]


def test_close_frees_the_memory(model_dir):
    with LLM(model_dir, **SMALL) as llm:
        leaves = jax.tree.leaves((llm.runner._params.leaves, llm.runner._state))
        assert not any(leaf.is_deleted() for leaf in leaves)
        cache = "cache of 1,008 tokens in 63 pages"
        sizes = f"4 sequences of at most 96 tokens; {cache}"
        assert repr(llm) == f"<LLM {model_dir}: float32 on cpu; {sizes}; 0 programs compiled>"
        assert repr(llm.engine) == (
            f"<Engine: continuous, fcfs; 4 sequences at once; {cache}; 0 unfinished requests; "
            "0 tokens in 0 steps>"
        )
    assert (repr(llm), repr(llm.engine)) == (f"<LLM {model_dir}: closed>", "<Engine: closed>")
    assert all(leaf.is_deleted() for leaf in leaves)
    calls = (
        lambda: llm.generate([1, 2]),
        lambda: llm.score([1, 2]),
        lambda: list(llm.stream([1, 2])),
        lambda: asyncio.run(llm.agenerate([1, 2])),
        lambda: llm.prefill([1, 2]),
        lambda: llm.kv("a"),
        lambda: llm.update_weights({}),
        lambda: llm.engine.add_request("a", [1, 2]),
        llm.engine.step,
        llm.weights,
        llm.prepare,
        llm.new_engine,
        llm.reset_prefix_cache,
    )
    for call in calls:
        with pytest.raises(JBatchError, match=r"^this LLM was closed, and its memory is free: make a new"):
            call()
    llm.close()


def test_dummy_weights_need_no_files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    with LLM(tmp_path, load_format="dummy", **SMALL) as llm:
        assert len(ids_of(llm.generate([[1, 2]], GREEDY))[0]) == 6


@pytest.mark.parametrize("name, hint", [("max_num_seq", "max_num_seqs"), ("block_size", "page_size")])
def test_an_unknown_option_is_a_type_error_with_a_suggestion(model_dir, name, hint):
    with pytest.raises(TypeError, match=f"no option '{name}'.*{hint}"):
        LLM(model_dir, **{name: 4})


@pytest.mark.parametrize(
    "options, field",
    [
        ({"max_model_len": 257}, "max_model_len"),  # the model's context is 256
        ({"dtype": "int8"}, "dtype"),
        ({"page_size": 20}, "page_size"),
        ({"max_num_seqs": 8}, "decode_buckets"),  # the largest holds 4
        ({"num_pages": None, "kv_cache_memory_bytes": 100}, "kv_cache_memory_bytes"),
    ],
)
def test_options_that_do_not_fit_are_config_errors(model_dir, options, field):
    with pytest.raises(ConfigError) as error:
        LLM(model_dir, **{**SMALL, **options})
    assert error.value.field == field


@pytest.mark.parametrize(
    "config, field",
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_models_that_are_not_implemented_are_config_errors(tmp_path, config, field):
    (tmp_path / "config.json").write_text(json.dumps(tiny(**config)))
    with pytest.raises(ConfigError) as error:
        LLM(tmp_path, **SMALL)
    assert error.value.field == field


def test_directories_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        LLM(tmp_path, **SMALL)
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    with pytest.raises(WeightsError):
        LLM(tmp_path, **SMALL)


def test_a_tokenizer_that_is_not_read(model_dir, tmp_path):
    """One that is named must be there; without one, prompts of token ids work."""
    with pytest.raises(ConfigError, match=r"tokenizer=.*no such directory"):
        LLM(model_dir, tokenizer=tmp_path / "nowhere", **SMALL)
    with pytest.raises(ConfigError, match=r"tokenizer=.*has no tokenizer\.json"):
        LLM(model_dir, tokenizer=tmp_path, **SMALL)
    write_checkpoint(tmp_path, seed=3)
    (tmp_path / "tokenizer.model").touch()
    with pytest.warns(UserWarning, match=r"has tokenizer\.model but no tokenizer\.json: make one"):
        llm = LLM(tmp_path, **SMALL)
    with llm:
        text, ids = llm.generate(["05.", [5]], GREEDY)
    assert "no tokenizer" in text.error and ids.error is None


def test_what_an_llm_does_not_have(llm):
    with pytest.raises(AttributeError, match=r"^'LLM' object has no attribute 'sleep': llm\.close") as error:
        _ = llm.sleep
    assert (error.value.name, error.value.obj) == ("sleep", llm)
    with pytest.raises(AttributeError, match=r"has no attribute 'generat'$"):
        _ = llm.generat
    assert not hasattr(llm, "beam_search")
