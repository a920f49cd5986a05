"""Paths that are no model directory: each named for what it is, with what would do."""

import json
import os

import pytest

from jbatch.errors import ConfigError
from jbatch.model_dir.paths import (
    check_model_dir,
    check_tokenizer_dir,
    unread_tokenizer,
    why_no_tokenizer,
)

ID = "meta-llama/Llama-3.1-8B"
NO_CONFIG = "no config.json: no Hugging Face model directory; "


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home directory, no hub cache, and a working directory."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def write(folder, *names, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def reason_of(path, check=check_model_dir):
    with pytest.raises(ConfigError) as error:
        check(path)
    message = str(error.value)
    assert message.startswith(f"{error.value.field}=") and error.value.value == str(path)
    assert "\n" not in message
    return error.value.reason


def test_a_model_directory(tmp_path):
    check_model_dir(write(tmp_path / "model", "config.json"))
    os.symlink(tmp_path / "model", tmp_path / "link")
    check_model_dir(str(tmp_path / "link"))


def test_a_shape_is_no_model():
    assert reason_of("llama3-8b").endswith("for jbatch plan and jbatch bench: give a model's directory")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "it is empty"),
        (("model.Q4_K_M.gguf",), "model.Q4_K_M.gguf is GGUF, which is not read: give the directory of the"),
        (("params.json", "consolidated.00.pth", "tokenizer.model"), "consolidated.00.pth is Meta's"),
        (("params.json", "consolidated.safetensors", "tekken.json"), "consolidated.safetensors is Meta's or"),
        (("adapter_config.json", "adapter_model.safetensors"), "it is a LoRA adapter: merge it into its"),
        (("pytorch_model.bin",), "pytorch_model.bin is a pickle, which is not read"),
        (("model/config.json",), "one is in it: give model/model"),
        (("checkpoint-1/config.json", "checkpoint-2/config.json"), "give model/checkpoint-2 (one of 2)"),
        (("a.txt", "b.txt", "c.txt", "d.txt"), "there is a.txt, b.txt, c.txt, ..."),
        (("model.safetensors",), "there is model.safetensors"),
    ],
)
def test_a_directory_without_config_json(names, reason, tmp_path):
    write(tmp_path / "work" / "model", *names)
    assert reason_of("model").startswith(NO_CONFIG) and reason in reason_of("model")


@pytest.mark.parametrize(
    ("content", "base"),
    [({"base_model_name_or_path": ID}, f" of {ID}"), ({"base_model_name_or_path": 5}, ""), ([], "")],
)
def test_an_adapter_names_its_base(content, base, tmp_path):
    folder = write(tmp_path / "lora", adapter_config=content)
    assert f"it is a LoRA adapter{base}: merge" in reason_of(folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.gguf", "GGUF is not read: give the directory of the safetensors"),
        ("pytorch_model.bin", "a pickle is not read: give the directory of the safetensors"),
        ("model.safetensors", "is a file: give the directory of the model"),
    ],
)
def test_a_file(name, reason, tmp_path):
    write(tmp_path / "work", name)
    assert reason_of(name) == reason


def test_a_file_of_a_model_directory(tmp_path):
    folder = write(tmp_path / "model", "config.json", "model.safetensors")
    assert reason_of(folder / "model.safetensors") == f"is a file: give its directory, {folder}"


@pytest.mark.parametrize("path", ["nowhere", "/no/such/model", "a/b/c", "../x", "models/Llama 3", "~/none"])
def test_a_path_that_is_not_there(path):
    assert reason_of(path) == "no such directory"


def test_a_home_directory_that_nobody_expanded(home):
    write(home / "model", "config.json")
    assert reason_of("~/model") == f"no such directory; give {home}/model"


def test_a_hub_id():
    download = f"hf download {ID} --local-dir DIR, then give DIR (jbatch downloads nothing)"
    assert reason_of(ID) == f"no such directory; for a hub id: {download}"


@pytest.mark.parametrize(
    "variable", [None, "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"]
)
def test_a_hub_id_with_a_snapshot(variable, home, tmp_path, monkeypatch):
    inside = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}
    cache = home / ".cache/huggingface/hub"
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
        cache = tmp_path / "elsewhere" / inside.get(variable, "")
    repository = cache / "models--meta-llama--Llama-3.1-8B"
    write(repository / "refs", "x")  # begun, and not there
    assert "hf download" in reason_of(ID)
    old, new = (write(repository / "snapshots" / name, "config.json") for name in ("b", "a"))
    os.utime(old / "config.json", (1, 1))
    os.utime(old, (1, 1))
    assert reason_of(ID) == f"no such directory; the hub cache has a snapshot of this id: give {new}"
    (repository / "refs" / "main").write_text("b\n")
    assert reason_of(ID).endswith(f"give {old}")
    assert reason_of(repository) == f"{NO_CONFIG}it is a repository of the hub cache: give {old}"


# Tokenizers.


def test_a_directory_with_a_tokenizer(tmp_path):
    folder = write(tmp_path / "model", "tokenizer.json", "tokenizer.model")
    check_tokenizer_dir(folder)
    assert why_no_tokenizer(folder) is unread_tokenizer(folder) is None


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "tekken.json", "vocab.json"])
def test_a_tokenizer_of_another_kind(name, tmp_path):
    folder = write(tmp_path / "model", "config.json", name)
    how = f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
    reason = f"has {name} but no tokenizer.json: make one with transformers' {how}"
    assert why_no_tokenizer(folder) == unread_tokenizer(folder) == reason
    assert reason_of(folder, check_tokenizer_dir) == reason


def test_no_tokenizer(tmp_path):
    folder = write(tmp_path / "model", "config.json")
    assert unread_tokenizer(folder) is None
    assert why_no_tokenizer(folder) == "has no tokenizer.json: it takes token ids, in Python and in JSONL"
    assert reason_of(tmp_path / "none", check_tokenizer_dir) == "no such directory"
    write(folder, "tokenizer.json")
    assert reason_of(folder / "tokenizer.json", check_tokenizer_dir).endswith(f"give its directory, {folder}")
