"""Files of tuned options: what they stand for, and what is refused."""

import dataclasses
import json

import pytest

from jbatch import LLM
from jbatch.config import EngineConfig, ModelConfig
from jbatch.distribution import version
from jbatch.errors import ConfigError
from jbatch.model_dir.tuned import SIZES, Tuned, TunedError, check_tuned, read_tuned, tuned_doubts, with_tuned
from tests.helpers.command import run, write_model

MODEL = ModelConfig(264, 32, 64, 1, 4, 2, 8, 128)
OPTIONS = {
    "max_num_seqs": 4, "max_num_batched_tokens": 64, "page_size": 16, "policy": "sjf",
    "decode_buckets": [4], "token_buckets": [32, 64],
}  # fmt: skip


def write(path, options=OPTIONS, model=MODEL, **changed):
    sizes = {name: getattr(model, name) for name in SIZES}
    dataclasses.replace(Tuned(options, sizes, "cpu", version(), {}), **changed).write(path)
    return str(path)


def test_what_is_written_is_read_and_stands_in_the_place_of_defaults(tmp_path):
    path = write(tmp_path / "tuned.json")
    assert read_tuned(path).options == OPTIONS
    options = with_tuned({"tuned": path, "seed": 3})
    config = EngineConfig(**options)
    assert (config.seed, config.max_num_seqs, config.policy, config.tuned) == (3, 4, "sjf", path)
    assert config.decode_buckets == (4,) and config.token_buckets == (32, 64)
    assert with_tuned(options) == options and with_tuned({"seed": 3}) == {"seed": 3}


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ({"policy": "fcfs"}, {}),
        ({"max_num_seqs": 8}, {"decode_buckets": None}),
        ({"max_num_batched_tokens": 512}, {"token_buckets": None}),
        ({"page_size": 128}, {"token_buckets": None, "max_num_batched_tokens": 2048}),
        ({"page_size": 16}, {"token_buckets": (32, 64), "max_num_batched_tokens": 64}),  # the tuned value
    ],
)
def test_what_a_user_says_wins_and_makes_void_what_was_chosen_for_another_value(tmp_path, said, left):
    config = EngineConfig(**with_tuned({"tuned": write(tmp_path / "tuned.json")} | said))
    for name, value in (said | left).items():
        assert getattr(config, name) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "costs"}, "is no file of tuned options: `jbatch tune` writes one"),
        ({"schema": 2}, "schema=2: must be 1: make it anew with `jbatch tune`"),
        ({"options": {"seed": 1}}, "options: 'seed' is none that is tuned"),
        ({"options": {"page_size": 7}}, "options: page_size=7: must be one of 16"),
        ({"options": []}, "options and model must be objects"),
        ({"model": {}}, "model.vocab_size=None: must be an integer"),
        ({"device": 1}, "device=1: must be text"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path, change, message):
    path = tmp_path / "tuned.json"
    write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TunedError) as refused:
        read_tuned(path)
    assert str(path) in str(refused.value) and message in str(refused.value)


def test_what_is_not_there_or_not_json(tmp_path):
    (tmp_path / "text").write_text("max_num_seqs: 4\n")
    with pytest.raises(TunedError, match="text: is not JSON"):
        with_tuned({"tuned": str(tmp_path / "text")})
    with pytest.raises(TunedError, match="nosuch: cannot be read: No such file"):
        with_tuned({"tuned": "nosuch"})


def test_another_model_is_refused_and_another_device_or_version_is_said(tmp_path):
    path = write(tmp_path / "tuned.json", device="NVIDIA H200", version="0.0.9")
    config = EngineConfig(tuned=path)
    check_tuned(config, MODEL)
    with pytest.raises(TunedError, match="made for another model: num_layers=1 there, and 2 here"):
        check_tuned(config, dataclasses.replace(MODEL, num_layers=2))
    device, other = tuned_doubts(config, "cpu", "0.1.0")
    assert device.endswith("was made for another device: NVIDIA H200, and this is cpu")
    assert other.endswith("was made for another version of jbatch: 0.0.9, and this is 0.1.0")
    assert tuned_doubts(EngineConfig(), "cpu", "") == []


def test_an_llm_and_a_command_take_it(tmp_path, capsys):
    model = write_model(tmp_path / "tiny")
    sizes = LLM(model, device="cpu", max_num_seqs=1, show_progress=False).model_config
    path = write(tmp_path / "tuned.json", model=sizes)
    with LLM(model, device="cpu", tuned=path, max_num_batched_tokens=16, show_progress=False) as llm:
        assert (llm.config.max_num_seqs, llm.config.max_num_batched_tokens) == (4, 16)
        assert {bucket.slots for bucket in llm.engine.scheduler.config.buckets} == {4}
    other = write(tmp_path / "other.json", model=dataclasses.replace(sizes, vocab_size=1000))
    with pytest.raises(TunedError, match="vocab_size=1000 there, and 264 here"):
        LLM(model, device="cpu", tuned=other)
    ended = run(
        capsys, "generate", model, "-p", "abc", "--device", "cpu", "--max-tokens", "2", "--tuned", other
    )
    assert ended.code == 2 and "was made for another model" in ended.err
    ended = run(capsys, "plan", model, "--device", "cpu", "--tuned", path)
    assert ended.code == 0 and "steps of 4 slots; with prompts, 32, 64 tokens" in ended.out
    with pytest.raises(ConfigError, match="tuned=3: must be a path"):
        EngineConfig(tuned=3)


def test_what_is_no_path():
    with pytest.raises(ConfigError, match="tuned=3: must be the path of a file of jbatch tune"):
        with_tuned({"tuned": 3})
