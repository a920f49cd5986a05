"""The command line, as a user meets it."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import jax
import pytest

import jbatch
from jbatch import LLM, SamplingParams
from jbatch.cli import main as cli
from jbatch.device.programs import Program, StepSpec
from jbatch.errors import ConfigError, JobError
from jbatch.sampler import Sampler
from jbatch.seam.bucket import Bucket
from tests.helpers.command import SMALL, run, write_model

GREEDY = ("--temperature", "0", "--max-tokens", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def no_compiling(monkeypatch):
    monkeypatch.setattr("jbatch.device.build.Runner", lambda *_: pytest.fail("compiled before it checked"))


def start(*args, **options) -> subprocess.Popen:
    """`python -m jbatch` in a process of its own."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace") | options
    return subprocess.Popen([sys.executable, "-m", "jbatch", *map(str, args)], **pipes)


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",)])
def test_help(args, capsys):
    ended = run(capsys, *args)
    assert ended.code == 0 and not ended.err
    assert all(f"  {command} " in ended.out for command in ("generate", "demo", "doctor", "plan", "convert"))


def test_version(capsys):
    ended = run(capsys, "--version")
    assert (ended.code, ended.out, ended.err) == (0, f"jbatch {jbatch.__version__}\n", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+", jbatch.__version__)


OF_ENTRY_POINTS = ("bench", "bench calibrate", "bench policies", "simulate", "predictor", "predictor train")


@pytest.mark.parametrize("command", ["", "generate", "demo", "doctor", "plan", "convert", *OF_ENTRY_POINTS])
def test_help_of_a_command_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ended = run(capsys, *command.split(), "--help")
    assert ended.code == 0 and max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out and "..." not in ended.out.replace("[ARGS]...", "")
    assert "[[" not in ended.out and "[default: enable-" not in ended.out and "[default: no-" not in ended.out


@pytest.mark.parametrize(
    "args, message",
    [
        ("genrate", "No such command 'genrate'. Did you mean 'generate'? (see jbatch --help)"),
        (
            "generate m --promt x",
            "No such option: --promt; did you mean --prompt? (see jbatch generate --help)",
        ),
        ("generate m --max-completion-tokens 1", "did you mean --max-tokens? (see jbatch generate --help)"),
        ("generate m --block-size 1", "No such option: --block-size; did you mean --page-size? (see"),
        ("generate m --pipeline-parallel-size 2", "; one model runs within one host. Spread it over"),
        ("generate m --output x", "did you mean --output-file?"),
        (
            "bench batching --num-requests 1",
            "--num-requests; did you mean --num-prompts? (see jbatch bench b",
        ),
        ("bench latency --save-result x", "did you mean --output-json?"),
        ("generate m --n 4", "--n; n is among the fields of JSONL lines and of SamplingParams (see"),
        ("generate m --overlap", "--overlap; overlap is among the options of jbatch.LLM in Python (see"),
        ("generate m --tp-size 2", "No such option: --tp-size; did you mean --tensor-parallel-size? (see"),
        ("generate", "Missing argument"),
        (
            "generate m",
            "give prompts (-p), or an input and an output file (-i and -o) (see jbatch generate --help)",
        ),
        ("generate m -p", "requires an argument"),
        ("generate m --chat", "jbatch: give prompts (-p), or an input"),
        (
            "generate m --chat -i a -o b",
            "--chat takes -p: the lines of a file are chats where they have mess",
        ),
        ("generate m -p x --chat-template t", "--chat-template takes --chat, or -i"),
        ("doctor a b", "unexpected extra argument(s) (b) (see jbatch doctor --help)"),
        (
            "generate m x",
            "unexpected extra argument(s) (x); give prompts with -p (see jbatch generate --help)",
        ),
        ("bench batching m", "unexpected extra argument(s) (m); give a model with --model (see"),
        ("serve m", "No such command 'serve': there is no HTTP server: jbatch generate MODEL"),
        ("run-batch m", "No such command 'run-batch': jbatch generate MODEL -i in.jsonl -o out.jsonl"),
        ("--foo", "No such option: --foo"),
        ("generate /nowhere -p x", "model='/nowhere': no such directory"),
        (
            "generate a/b -p x",
            "model='a/b': no such directory; for a hub id: hf download a/b --local-dir DIR",
        ),
        ("generate /nowhere -i x -o y", "model='/nowhere': no such directory"),
        ("plan /nowhere", "model='/nowhere': no such directory"),
        ("convert /nowhere out", "model='/nowhere': no such directory"),
        ("convert /nowhere out --dtype int8", "dtype='int8': must be one of auto, bfloat16"),
        ("demo --json /nowhere/x.json", "No such file or directory: '/nowhere/x.json'"),
    ],
)
def test_usage_errors_are_one_line(args, message, capsys):
    ended = run(capsys, *args.split())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("jbatch: ") and message in ended.err


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--max-tokens x", "max_tokens='x': must be an integer"),
        ("--max-tokens -1", "max_tokens=-1: must be an integer from 0"),
        ("--min-tokens 9 --max-tokens 3", "min_tokens=9: must be an integer from 0 to 3"),
        ("--temperature nan", "temperature=nan: must be a number from 0 to 100"),
        ("--temperature 1e999", "temperature=inf: "),
        ("--top-p 0", "top_p=0.0: must be above 0"),
        ("--top-k 99999999999999999999", "top_k=99999999999999999999: must be an integer from -1"),
        ("--min-p 1.1", "min_p=1.1: "),
        ("--stop=", "stop='': must be a string of 1 to 256 characters"),
        ("--seed -1", "seed=-1: must be an integer from 0 to 4294967295"),
        ("--max-num-seqs 0", "max_num_seqs=0: must be an integer from 1 to 4096"),
        ("--max-num-batched-tokens 7", "max_num_batched_tokens=7: "),
        ("--max-model-len 257", "max_model_len=257: must be at most 256, the model's context"),
        ("--page-size 17", "page_size=17: must be one of 16, 32, 64, 128"),
        ("--num-pages 1", "num_pages=1: "),
        ("--num-pages 999999999999999", "num_pages=999999999999999: "),
        ("--num-pages 3 --kv-cache-memory-bytes 9GB", "num_pages=3: set this or kv_cache_memory_bytes"),
        ("--kv-cache-memory-bytes 1KB", "kv_cache_memory_bytes=1000: 1000 bytes are left"),
        (
            "--kv-cache-memory-bytes 4",
            "kv_cache_memory_bytes='4': is in bytes: a unit is missing, as in 4GiB",
        ),
        ("--gpu-memory-utilization nan", "gpu_memory_utilization=nan: "),
        ("--mode foo", "mode='foo': must be one of continuous, static"),
        ("--policy foo", "policy='foo': must be one of fcfs"),
        ("--dtype int8", "dtype='int8': "),
        ("--load-format pickle", "load_format='pickle': must be one of auto, dummy"),
        ("--generation-config vllm", "generation_config='vllm': must be one of auto, jbatch"),
        ("--device tpu", "device='tpu': must be one of auto, cpu, cuda"),
    ],
)
def test_absurd_values_are_named(model, flags, message, no_compiling, capsys):
    device = () if "--device" in flags else ("--device", "cpu")
    ended = run(capsys, "generate", model, "-p", "x", *device, *flags.split())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"jbatch: {message}")


def test_cuda_without_a_gpu_says_what_to_install(model, no_compiling, capsys):
    if jax.default_backend() != "cpu":
        pytest.skip("there is a GPU")
    ended = run(capsys, "generate", model, "-p", "x", "--device", "cuda")
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "pip install '.[cuda12]' or '.[cuda13]' in a clone of jbatch" in ended.err


def edit_config(model_dir: pathlib.Path, **changes) -> None:
    path = model_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: (d / "config.json").unlink(), "no config.json: no Hugging Face model directory"),
        (lambda d: (d / "config.json").write_text("{"), "config.json="),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda d: (d / "tokenizer.json").rename(d / "tokenizer.model"), "has tokenizer.model but no token"),
        (lambda d: (d / "model.safetensors").rename(d / "model.gguf"), "model.gguf is GGUF"),
        (lambda d: (d / "generation_config.json").write_text('{"top_p": 2}'), "top_p=2: must be a number"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer.json="),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
        (lambda d: os.truncate(d / "model.safetensors", 3000), "model.safetensors"),
        (lambda d: edit_config(d, rope_scaling={"rope_type": "su", "factor": 2.0}), "rope_type='su'"),
        (lambda d: edit_config(d, intermediate_size=64), "mlp.gate_proj"),
    ],
)
def test_a_damaged_model_is_one_line(damage, message, tmp_path, no_compiling, capsys):
    model_dir = write_model(tmp_path / "model")
    damage(model_dir)
    ended = run(capsys, "generate", model_dir, "-p", "x", "--device", "cpu")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err


def test_texts_in_the_order_of_the_prompts(model, capsys):
    prompts = ["reverse ab=", "é👩\n\n=", "sort 21="]
    with LLM(model, device="cpu", max_model_len=32, max_num_seqs=1) as llm:
        texts = [
            o.outputs[0].text for o in llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=4))
        ]
    flags = [flag for prompt in prompts for flag in ("-p", prompt)]
    ended = run(capsys, "generate", model, *flags, *SMALL, *GREEDY)
    assert ended.code == 0
    assert re.fullmatch(r"jbatch: \d+ tokens in .* 0 compilations after warm-up\n", ended.err)
    assert ended.out == "".join(f"{prompt}{text}\n" for prompt, text in zip(prompts, texts, strict=True))


def test_a_chat_without_a_template_says_which_flag_gives_one(model, no_compiling, capsys):
    ended = run(capsys, "generate", model, "-p", "x", "--chat", *SMALL)
    reason = "has no chat template: leave --chat out, or give --chat-template FILE"
    assert (ended.code, ended.err) == (2, f"jbatch: model='{model}': {reason}\n")


@pytest.mark.skipif(not all(map(find_spec, ("transformers", "jinja2"))), reason="the extra chat")
def test_chats_print_the_answers_alone(model, tmp_path, capsys):
    template = tmp_path / "chat.jinja"
    template.write_text("{{ bos_token }}{{ messages[0].role[0] }}:{{ messages[0].content }}=")
    whole = run(capsys, "generate", model, "-p", "u:hello=", *SMALL, *GREEDY)
    options = ("--chat", "--chat-template", template, *SMALL, *GREEDY)
    chat = run(capsys, "generate", model, "-p", "hello", *options)
    assert (whole.code, chat.code) == (0, 0) and f"u:hello={chat.out}" == whole.out


def test_sampling_defaults_of_the_model(tmp_path, capsys):
    """Each for which there is no flag, and the summary says which."""
    model_dir = write_model(tmp_path / "model")
    values = {"temperature": 0, "top_k": 5, "max_new_tokens": 3}
    (model_dir / "generation_config.json").write_text(json.dumps(values))
    by_model = run(capsys, "generate", model_dir, "-p", "ab=", *SMALL, "--top-k", "7")
    own = run(capsys, "generate", model_dir, "-p", "ab=", *SMALL, *GREEDY, "--generation-config", "jbatch")
    assert by_model.code == own.code == 0
    figures, defaults = by_model.err.splitlines()
    assert figures.startswith("jbatch: 3 tokens in ")
    said = "jbatch: from the model's generation_config.json, where not set: max_tokens=3, temperature=0"
    assert defaults == said
    assert re.fullmatch(r"jbatch: 4 tokens in .*\n", own.err), "as it was asked, and no word of defaults"
    assert own.out.startswith(by_model.out.rstrip("\n")), "both are greedy"


@pytest.mark.parametrize("length, tokens", [(20, 32), (70, 128)])
def test_prompts_compile_what_they_need_and_no_more(length, tokens, model, capsys, monkeypatch):
    """A step of prompts, and one for each number of those that still decode, in the one way of drawing."""
    asked: list[set[Program]] = []

    def compile_nothing(spec: StepSpec, programs: Iterable[Program], on_compiled: Any) -> Any:
        asked.append(set(programs))
        raise ConfigError("programs", len(asked[0]), "enough")

    monkeypatch.setattr(StepSpec, "compile_all", compile_nothing)
    flags = ("-p", "a" * length, "-p", "b", *GREEDY, "--device", "cpu")
    assert "programs=3: enough" in run(capsys, "generate", model, *flags).err
    decode = {Program(Bucket(slots, 0), Sampler.GREEDY) for slots in (1, 2)}
    assert asked == [{Program(Bucket(2, tokens), Sampler.FILTERED), *decode}]


def test_prompts_that_cannot_be_served_do_not_stop_the_others(model, capsys):
    prompts = ["ok=", "x" * 300, os.fsdecode(b"\xff\xfe"), "fine="]
    flags = [flag for prompt in prompts for flag in ("-p", prompt)]
    ended = run(capsys, "generate", model, *flags, *SMALL, *GREEDY)
    assert ended.code == 1
    assert ended.out.startswith("ok=") and "\nfine=" in ended.out
    first, second, _ = ended.err.splitlines()
    assert first.startswith("jbatch: prompt 2 of 4: ") and len(first) < 200
    assert second.startswith("jbatch: prompt 3 of 4: ") and "surrogates" in second


def test_a_terminal_without_the_characters(model):
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    process = start("generate", model, "-p", "👩=", *SMALL, "--max-tokens", "0", env=environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (0, "\\U0001f469=\n", 1)


def test_a_closed_pipe_is_no_traceback(model):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as closed:
        process = start("doctor", model, stdout=closed)
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 3, "1 is of prompts that could not be served"


@pytest.mark.parametrize(
    "error, code, line",
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), 3, "No space left on device: 'x'"),
        (OSError(errno.EIO, "Input/output error"), 3, "Input/output error"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
            2,
            "No such file or directory: 'x'",
        ),
        (JobError("it had to stop"), 3, "it had to stop"),
        (ConfigError("x", 1, "must be 2"), 2, "x=1: must be 2"),
        (KeyError("page"), 3, "unexpected KeyError: 'page'. Its traceback is in "),
        (RecursionError("deep\nin"), 3, "unexpected RecursionError: deep in. Its traceback is in "),
    ],
)
def test_whatever_a_command_raises_is_one_line(error, code, line, tmp_path, monkeypatch, capsys):
    """And never exit code 1, which says that some prompts could not be served."""

    def fail(*_):
        raise error

    monkeypatch.setattr("jbatch.cli.doctor.examine", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = run(capsys, "doctor")
    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
    assert ended.err.startswith(f"jbatch: {line}")
    assert [path.read_text().count("in fail") for path in tmp_path.iterdir()] == (
        [1] if "unex" in line else []
    )


@pytest.mark.parametrize("delay_s", [0.7, 1.5, 3.0])
def test_an_interrupt_ends_at_once(model, delay_s):
    """In an import, a compilation, or a generation of 200 tokens: wherever it comes."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    flags = ("--ignore-eos", "--max-num-seqs", "64", "--device", "cpu")
    process = start("generate", model, "-p", "x", *flags, env=environment)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert (process.returncode, out, err) == (130, "", "jbatch: interrupted\n")


def test_a_damaged_compilation_cache_is_a_warning(capsys):
    """JAX goes on without, but warns at every start."""
    cli._warn(UserWarning("Error reading persistent compilation cache entry for 'jit_step':\n bad header"))
    message = "Error reading persistent compilation cache entry for 'jit_step': bad header"
    assert capsys.readouterr().err == f"jbatch: {message} (to be rid of this, delete ~/.cache/jbatch)\n"
