from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import weights
from jbatch.device.model import abstract_params
from jbatch.model_dir.config_json import load_config
from tests.helpers.hf_checkpoint import random_params, tiny, write_checkpoint, write_tensors
from weights import hugging_face
from weights.safetensors_file import read_header

EMBEDDING = "model.embed_tokens.weight"
ROOT = Path(__file__).parents[2]


def load(model_dir: Path) -> dict[str, jax.Array]:
    return weights.load(model_dir, abstract_params(load_config(model_dir)))


def tensors_of(config: dict) -> dict[str, np.ndarray]:
    return weights.to_hugging_face(random_params(config))


def write(
    model_dir: Path, tensors: dict[str, np.ndarray], config: dict | None = None, shards: int = 1
) -> Path:
    (model_dir / "config.json").write_text(json.dumps(config or tiny()))
    write_tensors(model_dir, tensors, shards)
    return model_dir


def refuses(model_dir: Path, *words: str) -> str:
    with pytest.raises(weights.WeightsError) as error:
        load(model_dir)
    message = str(error.value)
    for word in words:
        assert word in message, message
    return message


# ---- what loads ----


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 16},
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 8},
        {"torch_dtype": "bfloat16"},
        {"torch_dtype": "float16"},
    ],
)
def test_round_trip(tmp_path, changes, shards):
    params = write_checkpoint(tmp_path, tiny(**changes), shards=shards)
    loaded = load(tmp_path)
    assert list(loaded) == list(params)
    for name, value in params.items():
        assert loaded[name].dtype == value.dtype
        assert np.array_equal(np.asarray(loaded[name]), value), name


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
def test_dtypes_are_cast(tmp_path, stored, target):
    config = tiny(torch_dtype=target)
    tensors = {name: value.astype(stored) for name, value in tensors_of(tiny()).items()}
    loaded = load(write(tmp_path, tensors, config))
    assert np.array_equal(np.asarray(loaded["embedding"]), tensors[EMBEDDING].astype(target))
    gate = tensors["model.layers.1.mlp.gate_proj.weight"].astype(target)
    assert np.array_equal(np.asarray(loaded["layers.1.mlp.gate_up"][0]), gate)


def test_values_beyond_float16_are_refused(tmp_path):
    tensors = tensors_of(tiny())
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 1e6
    refuses(
        write(tmp_path, tensors, tiny(torch_dtype="float16")), "layers.0.mlp.up_proj", "float16", "bfloat16"
    )


def test_old_rotary_constants_are_ignored(tmp_path):
    tensors = tensors_of(tiny())
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    load(write(tmp_path, tensors))


def test_shardings_place_the_parameters(tmp_path):
    write_checkpoint(tmp_path, tiny())
    like = abstract_params(load_config(tmp_path))
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((1,), ("model",)), jax.sharding.PartitionSpec("model")
    )
    loaded = weights.load(tmp_path, like, {"embedding": sharding})
    assert loaded["embedding"].sharding == sharding
    like["embedding"] = jax.ShapeDtypeStruct(
        like["embedding"].shape, like["embedding"].dtype, sharding=sharding
    )
    assert weights.load(tmp_path, like)["embedding"].sharding == sharding


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"head_dim": 16}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 16}),
    ],
)
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_what_transformers_writes(tmp_path, family, changes, max_shard_size):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {
        key: value for key, value in tiny().items() if key.startswith(("vocab", "hidden", "inter", "num"))
    }
    config = transformers.AutoConfig.for_model(family, **sizes, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    ours = weights.to_hugging_face({name: np.asarray(value) for name, value in load(tmp_path).items()})
    theirs = {name: value.float().numpy() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del theirs["lm_head.weight"]
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.array_equal(ours[name].astype(np.float32), value), name


# ---- tensors that do not fit ----


def test_missing_unexpected_and_misshaped_tensors_are_named_together(tmp_path):
    tensors = tensors_of(tiny())
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    tensors["model.layers.9.mlp.up_proj.weight"] = np.ones((2, 2), np.float32)
    tensors["model.norm.weight"] = np.ones(31, np.float32)
    message = refuses(
        write(tmp_path, tensors),
        "model.layers.0.self_attn.q_proj.weight is missing",
        "'model.layers.9.mlp.up_proj.weight' is unexpected",
        "model.norm.weight has shape [31], expected [32]",
    )
    assert message.count(";") == 2


def test_many_problems_are_counted(tmp_path):
    message = refuses(write(tmp_path, {EMBEDDING: np.ones((96, 32), np.float32)}), "and 12 more")
    assert len(message) < 2000


def test_every_missing_and_every_transposed_tensor_is_named(tmp_path):
    tensors = tensors_of(tiny(attention_bias=True))
    for name, value in tensors.items():
        rest = {key: other for key, other in tensors.items() if key != name}
        refuses(write(tmp_path, rest, tiny(attention_bias=True)), f"tensor {name} is missing")
        reshaped = value[None] if value.ndim == 1 else value.reshape(-1, 2)
        refuses(
            write(tmp_path, rest | {name: reshaped}, tiny(attention_bias=True)), f"tensor {name} has shape"
        )


def test_bias_without_the_flag_is_unexpected(tmp_path):
    refuses(write(tmp_path, tensors_of(tiny(attention_bias=True))), "q_proj.bias' is unexpected")


def test_quantised_tensors_are_refused(tmp_path):
    tensors = tensors_of(tiny())
    tensors[EMBEDDING] = tensors[EMBEDDING].astype(np.int8)
    refuses(write(tmp_path, tensors), EMBEDDING, "I8", "quantised")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.qweight",
        "model.layers.0.self_attn.q_proj.scales",
        "model.layers.0.mlp.up_proj.weight_packed",
        "model.layers.0.mlp.up_proj.weight_scale",
        "model.layers.0.mlp.up_proj.weight_scale_inv",
        "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4",
    ],
)
def test_tensors_of_quantised_weights_say_so(tmp_path, name):
    tensors = tensors_of(tiny())
    tensors[name] = tensors.pop("model.layers.0.self_attn.q_proj.weight")
    message = refuses(write(tmp_path, tensors), f"{name[:80]!r} is of quantised weights", "take the model's")
    assert message.count(";") == 0


def test_tensors_of_an_adapter_say_so(tmp_path):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    refuses(write(tmp_path, {name: np.ones((2, 2), np.float32)}), name, "is of a LoRA adapter: merge it")


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("", "tensors have no prefix, not with 'model.' ('embed_tokens.weight' is there"),
        ("model.model.", "tensors begin with 'model.model.', not with 'model.'"),
        ("language_model.model.", "tensors begin with 'language_model.model.', not with 'model.'"),
    ],
)
def test_tensors_without_the_usual_prefix_say_so(tmp_path, prefix, words):
    """As LlamaModel or a larger model around it saves them; once, and not for each tensor."""
    tensors = {name.replace("model.", prefix, 1): value for name, value in tensors_of(tiny()).items()}
    message = refuses(write(tmp_path, tensors), words, "AutoModelForCausalLM")
    assert "missing" not in message and message.count(";") == 0


def test_tied_embeddings(tmp_path):
    tied, untied = tiny(tie_word_embeddings=True), tiny()
    tensors = tensors_of(tied)
    refuses(write(tmp_path, tensors, untied), "lm_head.weight is missing", "does not tie")
    same = tensors | {"lm_head.weight": tensors[EMBEDDING].copy()}
    assert "unembedding" not in load(write(tmp_path, same, tied))
    assert "unembedding" in load(write(tmp_path, same, untied))
    same["lm_head.weight"][95, 31] = np.nextafter(same["lm_head.weight"][95, 31], np.float32(9))
    refuses(write(tmp_path, same, tied), "lm_head.weight", "ties", "differ")


# ---- files ----


def test_nothing_to_load(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    refuses(tmp_path, "model.safetensors")
    like = abstract_params(load_config(tmp_path))
    with pytest.raises(weights.WeightsError, match="no such directory"):
        weights.load(tmp_path / "nowhere", like)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    refuses(tmp_path, "pytorch_model.bin", "convert")


def test_an_index_is_required_for_shards(tmp_path):
    write_checkpoint(tmp_path, tiny(), shards=2)
    (tmp_path / hugging_face.INDEX).unlink()
    refuses(tmp_path, "index.json is missing", "model-00001-of-00002.safetensors")


def test_a_stray_weights_file_is_refused(tmp_path):
    write_checkpoint(tmp_path, tiny(), shards=2)
    save_file({"a": np.ones(2)}, tmp_path / "model.safetensors")
    refuses(tmp_path, "model.safetensors is not among")
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")  # Mistral's own format
    load(tmp_path)


def edit_index(model_dir: Path, change) -> None:
    path = model_dir / hugging_face.INDEX
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "../other.safetensors",
        "..",
        "",
        "sub/../../x.safetensors",
        "a\\b.safetensors",
        "C:x.safetensors",
        "model.bin",
        "nul\x00.safetensors",
        7,
        None,
        ["x.safetensors"],
    ],
)
def test_an_index_may_only_name_files_in_the_directory(tmp_path, target):
    write_checkpoint(tmp_path / "model", tiny(), shards=2)
    save_file({EMBEDDING: np.ones((96, 32), np.float32)}, tmp_path / "other.safetensors")
    edit_index(tmp_path / "model", lambda weight_map: weight_map.update({EMBEDDING: target}))
    refuses(tmp_path / "model", EMBEDDING, "index.json", "not the name of a safetensors file")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map(tmp_path, weight_map):
    write_checkpoint(tmp_path, tiny(), shards=2)
    (tmp_path / hugging_face.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refuses(tmp_path, "index.json", "weight_map")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000])
def test_a_broken_index(tmp_path, data):
    write_checkpoint(tmp_path, tiny(), shards=2)
    (tmp_path / hugging_face.INDEX).write_bytes(data)
    refuses(tmp_path, "model.safetensors.index.json")


def test_a_missing_shard_and_a_shard_that_lacks_a_tensor(tmp_path):
    write_checkpoint(tmp_path, tiny(), shards=2)
    edit_index(
        tmp_path, lambda weight_map: weight_map.update({"new.weight": "model-00001-of-00002.safetensors"})
    )
    refuses(tmp_path, "model-00001-of-00002.safetensors lacks tensor 'new.weight'")
    edit_index(
        tmp_path, lambda weight_map: weight_map.update({"new.weight": "model-00003-of-00003.safetensors"})
    )
    refuses(tmp_path, "model-00003-of-00003.safetensors", "missing")


def test_a_tensor_in_two_shards_or_in_none_of_the_index(tmp_path):
    write_checkpoint(tmp_path, tiny(), shards=2)
    second = tmp_path / "model-00002-of-00002.safetensors"
    with safe_open(tmp_path / "model-00001-of-00002.safetensors", "numpy") as file:
        name = next(iter(file.keys()))
        doubled = file.get_tensor(name)
    with safe_open(second, "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({**tensors, name: doubled}, second)
    refuses(tmp_path, name, "in both model-00001-of-00002.safetensors and model-00002-of-00002.safetensors")
    save_file({**tensors, "extra.weight": doubled}, second)
    refuses(tmp_path, "'extra.weight' is in model-00002-of-00002.safetensors", "says None")


def test_links_may_not_leave_the_directory_except_into_a_hub_cache(tmp_path):
    outside, model = tmp_path / "outside.safetensors", tmp_path / "model"
    write_checkpoint(model, tiny())
    (model / "model.safetensors").rename(outside)
    (model / "model.safetensors").symlink_to(outside)
    refuses(model, "model.safetensors", "leaves the directory")
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    outside.rename(cache / "blobs" / "0123")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(Path("../../blobs/0123"))
    model.rename(cache / "snapshots" / "abc")
    load(cache / "snapshots" / "abc")
    (tmp_path / "link").symlink_to(cache / "snapshots" / "abc")
    load(tmp_path / "link")


def test_a_directory_or_pipe_in_place_of_the_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    (tmp_path / "model.safetensors").mkdir()
    refuses(tmp_path, "model.safetensors")
    (tmp_path / "model.safetensors").rmdir()
    os.mkfifo(tmp_path / "model.safetensors")
    refuses(tmp_path, "model.safetensors")  # and does not wait for a writer


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.Q4_K_M.gguf", "model.Q4_K_M.gguf is GGUF, which is not read: take the model's safetensors"),
        ("pytorch_model.bin", "pytorch_model.bin may run code when read"),
        ("adapter_model.safetensors", "adapter_model.safetensors is a LoRA adapter: merge it"),
        ("consolidated.safetensors", "consolidated.safetensors has Mistral's own names"),
        ("flax_model.msgpack", "flax_model.msgpack is not read"),
        ("weights.safetensors", "weights.safetensors is not called model.safetensors"),
        ("README.md", "neither model.safetensors nor model.safetensors.index.json is there"),
    ],
)
def test_what_is_there_in_place_of_the_weights(tmp_path, name, words):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    (tmp_path / name).touch()
    refuses(tmp_path, words)


def test_a_pointer_of_git_lfs_in_place_of_the_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9976570304\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    refuses(tmp_path, "model.safetensors", "a pointer of Git LFS in place of the file", "git lfs pull")


# ---- headers ----


def file_of(header: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(begin: int, end: int, shape: object = None, dtype: object = "F32", **more: object) -> dict:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"\x00" * 8,
        b"PK\x03\x04" + b"\x00" * 100,
        file_of(b"", length=2**63),
        file_of(b"{}", length=3),
        file_of(b"[]"),
        file_of(b"null"),
        file_of(b"\xff\xfe"),
        file_of(b"{" * 1000),
        file_of(b"[" * 100_000),
        file_of({}, b"trailing"),
        file_of({"a": None}),
        file_of({"a": {}}),
        file_of({"a": entry(0, 4, dtype="F31")}, bytes(4)),
        file_of({"a": entry(0, 4, dtype=["F32"])}, bytes(4)),
        file_of({"a": entry(0, 4, shape=[-1])}, bytes(4)),
        file_of({"a": entry(0, 4, shape=[1.0])}, bytes(4)),
        file_of({"a": entry(0, 4, shape=[True])}, bytes(4)),
        file_of({"a": entry(0, 4, shape=[2])}, bytes(4)),
        file_of({"a": entry(0, 4, shape=[2**40, 2**40])}, bytes(4)),
        file_of({"a": entry(0, 4, shape="1")}, bytes(4)),
        file_of({"a": entry(0, 4, surprise=1)}, bytes(4)),
        file_of({"a": entry(4, 0)}, bytes(4)),
        file_of({"a": entry(0, 8)}, bytes(4)),
        file_of({"a": entry(4, 8)}, bytes(8)),
        file_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        file_of({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)),
        file_of({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
        file_of(b'{"a": %b, "a": %b}' % ((json.dumps(entry(0, 4)).encode(),) * 2), bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": {"0": 4}}}, bytes(4)),
    ],
)
def test_bad_headers(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(tiny()))
    (tmp_path / "model.safetensors").write_bytes(content)
    assert len(refuses(tmp_path, "model.safetensors")) < 1000


def test_a_good_header_is_read_as_the_library_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(
        {"a": np.ones((2, 0), np.float32), "b": np.ones((), np.float16), "c": np.ones((3, 5), np.int64)},
        path,
        metadata={"format": "np"},
    )
    header = read_header(path)
    assert {name: (t.dtype, t.shape) for name, t in header.items()} == {
        "a": ("F32", (2, 0)),
        "b": ("F16", ()),
        "c": ("I64", (3, 5)),
    }


def test_truncated_anywhere(tmp_path):
    write_checkpoint(tmp_path, tiny())
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    rng = random.Random(0)
    for size in {0, 1, 7, 8, 9, len(data) - 1, *(rng.randrange(len(data)) for _ in range(30))}:
        path.write_bytes(data[:size])
        refuses(tmp_path, "model.safetensors")
    path.write_bytes(data + b"\x00")
    refuses(tmp_path, "model.safetensors")


def test_flipped_header_bits_never_give_a_traceback(tmp_path):
    write_checkpoint(tmp_path, tiny())
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    header_bits = 8 * (8 + int.from_bytes(data[:8], "little"))
    rng = random.Random(0)
    for bit in [*range(64), *(rng.randrange(header_bits) for _ in range(200))]:
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            load(tmp_path)  # a flip in the metadata, or of two equal tensors' names, may pass
        except weights.WeightsError as error:
            assert "model" in str(error)
        data[bit // 8] ^= 1 << bit % 8


# ---- memory ----


def test_headers_are_checked_before_any_tensor_is_read(tmp_path, monkeypatch):
    tensors = tensors_of(tiny())
    del tensors["lm_head.weight"]
    monkeypatch.setattr(hugging_face, "read", lambda tensor: pytest.fail("read a tensor"))
    refuses(write(tmp_path, tensors), "lm_head.weight is missing")


PEAK = """
import sys
import jax, numpy as np
from jbatch.model_dir.config_json import load_config
from jbatch.device.model import abstract_params
import weights
def high_water():  # not ru_maxrss, which a child inherits from its parent
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
jax.block_until_ready(jax.device_put(np.zeros(8, np.float32)))
like = abstract_params(load_config(sys.argv[1]))
weights.load(sys.argv[2], abstract_params(load_config(sys.argv[2])))  # code and allocators are warm
before = high_water()
params = weights.load(sys.argv[1], like)
after = high_water()
sizes = [leaf.size * leaf.dtype.itemsize for leaf in like.values()]
print(after - before, sum(sizes) // 1024, max(sizes) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory figures")
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_the_host_holds_little_more_than_the_model(tmp_path, stored):
    config = tiny(
        vocab_size=8192, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, torch_dtype="float32"
    )
    tensors = {name: value.astype(stored) for name, value in tensors_of(config).items()}
    for name in ("big", "small"):
        (tmp_path / name).mkdir()
    write(tmp_path / "big", tensors, config)
    write_checkpoint(tmp_path / "small", tiny())
    command = [sys.executable, "-c", PEAK, str(tmp_path / "big"), str(tmp_path / "small")]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    peak, model, largest = map(int, done.stdout.split())
    assert model > 8 * largest
    assert peak < model + largest + 8 * 1024, (peak, model, largest)  # KiB


@pytest.mark.parametrize("file, reason", [("x" * 300, "name too long"), ("loop", "cannot be read|missing")])
def test_names_that_no_file_can_have(file, reason, tmp_path):
    """A shard's name in the index is anything."""
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    index = {"weight_map": {"norm.weight": f"{file}.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(weights.WeightsError, match=reason):
        weights.check(tmp_path, {})
