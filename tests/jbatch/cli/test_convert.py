"""`jbatch convert`, and what reads its output."""

import json

import pytest

from jbatch import LLM, SamplingParams
from jbatch.cli.convert import convert_model
from tests.helpers.command import run, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "hf")


@pytest.fixture(scope="module")
def converted(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "converted"
    convert_model(model, out)
    return out


def texts(model_dir):
    with LLM(model_dir, device="cpu", max_num_seqs=1, max_model_len=32) as llm:
        outputs = llm.generate(["sort 312=", "a"], SamplingParams(temperature=0.0, max_tokens=6))
    return [output.outputs[0].token_ids for output in outputs]


def test_the_same_texts(model, converted):
    assert texts(model) == texts(converted)


def test_into_a_directory_that_is_not_empty(model, converted, capsys):
    before = (converted / "manifest.json").read_bytes()
    ended = run(capsys, "convert", model, converted)
    assert ended.code == 2 and "exists and is not an empty directory" in ended.err
    assert (converted / "manifest.json").read_bytes() == before


def test_another_dtype_is_the_one_it_runs_in(model, tmp_path, capsys):
    out = tmp_path / "new" / "bf16"
    ended = run(capsys, "convert", model, out, "--dtype", "bfloat16")
    assert ended == (0, f"wrote {out}\n", "")
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "torch_dtype" not in config
    ended = run(capsys, "doctor", out)
    assert ended.code == 0 and "context 256, bfloat16 (float32 on this CPU)" in ended.out


def test_a_changed_file_is_named(model, tmp_path, capsys):
    out = tmp_path / "out"
    convert_model(model, out)
    (out / "tokenizer.json").write_text("{}")
    for command in (("doctor", out), ("generate", out, "-p", "x", "--device", "cpu")):
        ended = run(capsys, *command)
        assert ended.code in (1, 2) and "tokenizer.json" in ended.out + ended.err


def test_changed_weights_are_named(model, tmp_path, capsys):
    out = tmp_path / "out"
    convert_model(model, out)
    path = max((p for p in (out / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    ended = run(capsys, "generate", out, "-p", "x", "--device", "cpu")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{path.name} has changed since manifest.json was written" in ended.err


def test_a_failure_leaves_nothing_behind(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    ended = run(capsys, "convert", model, tmp_path / "file" / "out")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
