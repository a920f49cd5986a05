"""Broken model files from seeds: config.json, safetensors headers and indices, tokenizer.json.

Whatever is in a model directory, reading it gives an answer or one error of jbatch's own, of one line, that
names the file or the field. Reading opens no file outside the directory, imports nothing and uses no network.
"""

from __future__ import annotations

import copy
import faulthandler
import functools
import json
import os
import random
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jbatch.errors import RequestError
from jbatch.model_dir.config_json import load_config, load_eos_token_ids, load_token_id
from jbatch.model_dir.generation_json import load_sampling_defaults
from jbatch.text import tokenizer, tokenizer_probe
from jbatch.text.tokenizer import load_tokenizer
from tests.helpers.hf_checkpoint import TINY
from tests.helpers.jsonl_fuzz import DAMAGES
from tests.helpers.loading_watch import check_loading, model_dir, watch
from weights import demo
from weights.hugging_face import check_hugging_face
from weights.safetensors_file import DTYPES, read

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 0.5, -0.0, 2**16, 2**31, 2**48, 2**63, 2**64, 10**400, 1e308),
    *("", "x", "1", "../x", "\u2028\n", "\ud800", "x" * 10_000, [], {}, [0], [None], [[]], {"": 0}, [-1, 2]),
    *(float("nan"), float("inf"), list(range(3000)), {str(i): i for i in range(300)}),
]


# ---- changing JSON ----


def broken_json(value: Any, rng: random.Random, values: list[Any] = VALUES) -> bytes:
    """JSON, mostly broken in one or two places, first as values and then as bytes."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        change(value, rng, values)
    raw = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 1, 3])):
        raw = rng.choice(DAMAGES)(raw, rng)
    return raw


def change(value: Any, rng: random.Random, values: list[Any]) -> None:
    """Change one place, however deep: deleted, replaced, moved, wrapped, or one more."""
    places = [place for place in _containers(value) if place]
    if not places:
        return
    place = rng.choice(places)
    key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
    how = rng.randrange(8)
    if how == 0:
        del place[key]
    elif how == 1:
        other = rng.choice(places)
        place[key] = copy.deepcopy(
            other[rng.choice(list(other) if isinstance(other, dict) else range(len(other)))]
        )
    elif how == 2:
        for _ in range(rng.choice([1, 2, 60])):
            place[key] = [place[key]] if rng.random() < 0.7 else {"a": place[key]}
    elif how == 3 and isinstance(place, dict):
        place[f"{key}{rng.choice(['_', ' ', 'x'])}"] = copy.deepcopy(place[key])
    elif how == 4 and type(place[key]) in (int, float):
        place[key] = rng.choice([-place[key], place[key] + 1, place[key] - 1, place[key] * 2, 2**40])
    else:
        place[key] = copy.deepcopy(rng.choice(values))


def _containers(value: Any) -> list[Any]:
    """All objects and lists within a value, itself included; nested as deep as they like."""
    containers, todo = [], [value]
    while todo:
        inner = todo.pop()
        if isinstance(inner, dict | list):
            containers.append(inner)
            todo += inner.values() if isinstance(inner, dict) else inner
    return containers


# ---- config.json and generation_config.json ----

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: list[dict[str, Any]] = [
    TINY,
    TINY | {"rope_scaling": LLAMA3, "eos_token_id": [2, 3], "head_dim": 8, "attention_bias": True},
    TINY
    | {"rope_parameters": YARN | {"rope_theta": 1e4}, "model_type": "qwen3", "use_sliding_window": False},
    TINY | {"rope_scaling": {"type": "linear", "factor": 2.0}, "model_type": "mistral", "sliding_window": 64},
    TINY
    | {"model_type": "qwen2", "layer_types": ["full_attention"] * 2, "max_window_layers": 2, "id2label": {}},
]
GENERATION = {"eos_token_id": [2, 5], "bos_token_id": 1, "temperature": 0.6, "top_k": 5, "max_new_tokens": 9}


def check_config(seed: int) -> None:
    """config.json and generation_config.json of a seed: a ModelConfig that can be used, or an error."""
    rng = random.Random(seed)
    with model_dir() as folder:
        (folder / "config.json").write_bytes(broken_json(rng.choice(CONFIGS), rng))
        if rng.random() < 0.3:
            (folder / "generation_config.json").write_bytes(broken_json(GENERATION, rng))

        def load() -> None:
            config = load_config(folder)
            assert config.kv_bytes_per_token > 0 and config.context_len >= 0 and config.max_context_len >= 0
            assert all(0 <= token_id < config.vocab_size for token_id in load_eos_token_ids(folder))
            bos = load_token_id(folder, "bos_token_id")
            load_sampling_defaults(folder, "auto")
            assert bos is None or 0 <= bos < config.vocab_size

        check_loading(load, folder)


# ---- safetensors ----


def check_safetensors(seed: int) -> None:
    """Files of a seed, one or three with an index: tensors whose bytes can be read, or an error."""
    rng = random.Random(seed)
    with model_dir() as folder:
        write_broken_tensors(folder, rng)

        def load() -> None:
            for tensor in check_hugging_face(folder, LIKE).values():
                assert read(tensor).nbytes == tensor.nbytes

        check_loading(load, folder)


class Leaf:
    """Of the parameters that are asked for; the real ones are jax.ShapeDtypeStructs."""

    def __init__(self, *shape: int):
        self.shape, self.dtype = shape, np.dtype(np.float32)


LIKE: Any = {"embedding": Leaf(8, 4), "layers.0.mlp.gate_up": Leaf(2, 6, 4), "norm.scale": Leaf(4)}
TENSORS = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.mlp.gate_proj.weight": (6, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.norm.weight": (4,),
}
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
ENTRY_VALUES: list[Any] = [
    *VALUES, *DTYPES, "F4", "I4", "C64", [8, 4], [4, 8], [1] * 9, [2**48], [2**40, 2**40], [0, 0], [128, 0],
    [0, 2**63], [64, 192],
]  # fmt: skip
FILE_NAMES: list[Any] = [
    *SHARDS, "model.safetensors", "../model.safetensors", "/etc/passwd", "link.safetensors",
    "a/b.safetensors", "model-00001-of-00003.bin", "..", ".", "", "\x00.safetensors",
    "x" * 300 + ".safetensors", None, 1, [],
]  # fmt: skip


def write_broken_tensors(folder: Path, rng: random.Random) -> None:
    """A single file, or shards and their index."""
    names = list(TENSORS)
    if rng.random() < 0.6:
        (folder / "model.safetensors").write_bytes(broken_file(names, rng))
        return
    weight_map: dict[str, Any] = {}
    for shard, file in enumerate(SHARDS):
        mine = names[shard::3]
        damaged = rng.random() < 0.3
        (folder / file).write_bytes(broken_file(mine, rng) if damaged else whole_file(mine))
        weight_map.update(dict.fromkeys(mine, file))
    if rng.random() < 0.1:
        (folder / rng.choice(SHARDS)).unlink()
    if rng.random() < 0.3:
        (folder / "link.safetensors").symlink_to(
            rng.choice(["/etc/hostname", "/dev/zero", "..", SHARDS[0], "loop"])
        )
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_bytes(broken_json(index, rng, VALUES + 3 * FILE_NAMES))


def header_of(names: list[str]) -> dict[str, Any]:
    header, end = {}, 0
    for name in names:
        start, end = end, end + 4 * int(np.prod(TENSORS[name]))
        header[name] = {"dtype": "F32", "shape": list(TENSORS[name]), "data_offsets": [start, end]}
    return header


def whole_file(names: list[str]) -> bytes:
    header = json.dumps(header_of(names)).encode()
    size = sum(4 * int(np.prod(TENSORS[name])) for name in names)
    return len(header).to_bytes(8, "little") + header + bytes(size)


def broken_file(names: list[str], rng: random.Random) -> bytes:
    """A safetensors file, broken in its header's values, its header's bytes, its length, or its size."""
    whole = whole_file(names)
    if rng.random() < 0.05:
        return whole
    header = broken_json({"__metadata__": {"format": "pt"}} | header_of(names), rng, ENTRY_VALUES)
    if rng.random() < 0.1:  # a tensor twice
        header = header.rstrip(b"}") + b"}," + header.partition(b'"F32"')[0][1:] + b'"F32"}}'
    data = bytes(sum(4 * int(np.prod(TENSORS[name])) for name in names))
    length = len(header)
    how = rng.randrange(10)
    if how == 0:
        length = rng.choice(
            [0, 1, length - 1, length + 1, 2**32, 2**63, 2**64 - 1, len(header) + len(data) + 1]
        )
    elif how == 1:
        data += rng.choice([b"\0", data, bytes(1000)])
    raw = length.to_bytes(8, "little") + header + data
    if how == 2:
        raw = raw[: rng.randrange(len(raw))]
    return raw


# ---- tokenizer.json and tokenizer_config.json ----

DEMO_TOKENIZER = json.loads((Path(demo.__file__).parent / "tokenizer.json").read_text())
BPE = {
    **DEMO_TOKENIZER["model"],
    "vocab": {c: i for i, c in enumerate(["a", "b", "ab", "Ġ", "abĠ", "c", "o"])},
}
BPE["merges"] = [["a", "b"], ["ab", "Ġ"]]
TOKENIZER = DEMO_TOKENIZER | {"model": BPE, "post_processor": None}
PARTS: list[dict[str, Any]] = [
    {},
    {"post_processor": DEMO_TOKENIZER["post_processor"]},
    {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "_"},
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
        {"type": "Strip", "strip_left": True, "strip_right": True}]}},
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\s+|\\w+"}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True},
        {"type": "Digits", "individual_digits": True}]}},
    {"decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}},
    {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
     "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "x"}},
    {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["ab", -2.0]],
               "byte_fallback": False}},
    {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
               "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1, "##b": 2}}},
    {"model": {"type": "WordLevel", "unk_token": "x", "vocab": {"x": 0, "a": 1}}},
]  # fmt: skip
TOKENIZER_CONFIG = {
    "bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "add_bos_token": True,
    "model_max_length": 10**30, "chat_template": "{{ messages }}",
}  # fmt: skip


def check_tokenizer(seed: int) -> None:
    """tokenizer.json and tokenizer_config.json of a seed: a tokenizer that gives an answer or a RequestError
    to every text and every token, or an error."""
    rng = random.Random(seed)
    with model_dir() as folder, probe_in(forked_probe()):
        (folder / "tokenizer.json").write_bytes(broken_json(TOKENIZER | rng.choice(PARTS), rng))
        if rng.random() < 0.5:
            (folder / "tokenizer_config.json").write_bytes(broken_json(TOKENIZER_CONFIG, rng))

        def load() -> None:
            tokenizer = load_tokenizer(folder)
            assert tokenizer is not None
            for text in ("ab abc ", "日本\n", "\ud800", ""):
                try_out(lambda text=text: tokenizer.encode(text))
            for token_ids in ([], [0, 1, 2], [10**6]):
                try_out(lambda token_ids=token_ids: tokenizer.decode(token_ids))

        check_loading(load, folder)


def try_out(answer: Callable[[], Any]) -> None:
    try:
        answer()
    except RequestError as error:
        assert len(str(error).splitlines()) == 1


@contextmanager
def probe_in(process: ForkedProbe) -> Iterator[None]:
    """Use a process that stays, since starting one per input takes 0.2 s."""
    before = tokenizer.refusal
    tokenizer.refusal = process.refusal
    try:
        yield
    finally:
        tokenizer.refusal = before


class ForkedProbe:
    """A process that does what jbatch.text.tokenizer_probe does in its own, for one file after the other."""

    def __init__(self) -> None:
        self._pid = 0
        self._socket = socket.socket()

    def refusal(self, data: bytes) -> str | None:
        if not self._pid:
            with watch().on(None):
                self._start()
        try:
            self._socket.sendall(len(data).to_bytes(8, "little") + data)
            head = self._receive(2)
            text = self._receive(int.from_bytes(head, "little")).decode()
        except (OSError, EOFError):
            _, status = os.waitpid(self._pid, 0)
            self._pid = 0
            self._socket.close()
            return tokenizer_probe._of_exit_code(os.waitstatus_to_exitcode(status), len(data))
        return text or None

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(60)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._socket.close()
                _serve(theirs)
            finally:
                os._exit(3)
        theirs.close()


@functools.cache
def forked_probe() -> ForkedProbe:
    return ForkedProbe()


def _serve(connection: socket.socket) -> None:
    """Answer until the other side is gone, or a file ends this process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where panics are told
    faulthandler.disable()  # pytest's, which tells of aborts
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    limit = _address_space() + tokenizer_probe.memory_limit(0)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with connection.makefile("rwb") as stream:
        while size := stream.read(8):
            data = stream.read(int.from_bytes(size, "little"))
            signal.setitimer(signal.ITIMER_PROF, tokenizer_probe.cpu_limit_s(len(data)))
            answer = (tokenizer_probe.probe(data) or "").encode(errors="replace")
            signal.setitimer(signal.ITIMER_PROF, 0)
            stream.write(len(answer).to_bytes(2, "little") + answer)
            stream.flush()


def _address_space() -> int:
    """Bytes of this process, as Linux counts them."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
