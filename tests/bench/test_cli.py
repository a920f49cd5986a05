"""`jbatch bench` as a user meets it, on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.flags import Experiment
from bench.ladder import batching, throughput
from bench.ladder.arms import ARMS
from bench.ladder.ladder import climb
from bench.measure import ceilings
from bench.options import Setting
from bench.workloads.workload import make_workload
from jbatch.distribution import version
from jbatch.model_dir.tuned import SIZES as SIZES_OF_MODEL
from jbatch.model_dir.tuned import Tuned
from tests.helpers.command import run, write_model
from tests.helpers.fake_subject import CountingRunner, FakeSubject

ROOT = Path(__file__).parents[2]
SIZES = ("--device", "cpu", "--max-num-seqs", "2", "--page-size", "16", "--max-num-batched-tokens", "128")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr("jbatch.device.build.Runner", lambda *_: pytest.fail("compiled before it checked"))


def test_batching_prints_and_writes_the_counts_of_any_runner(model, tmp_path, capsys, monkeypatch):
    """32 requests are 16 batches of 2, so gains are named. The device's rates are those of tiny arrays."""
    monkeypatch.setattr(ceilings, "sizes_beside", lambda device, dtype: ceilings.SMOKE)
    out = tmp_path / "out"
    workload_flags = ("--dataset-name", "mixed_length", "--num-prompts", "32", "--length-scale", "0.1")
    ended = run(
        capsys, "bench", "batching", "--model", model, *SIZES, *workload_flags, "--repeats", "2",
        "--goodput", "ttft:60000", "--output-dir", out, "--details",
    )  # fmt: skip
    passes = [line for line in ended.err.splitlines() if "compiling" not in line]
    assert ended.code == 0 and len(passes) == 2 * len(ARMS)
    assert passes[-1].startswith(f"jbatch: pass {len(passes)} of {len(passes)}: ")
    assert ended.out.startswith("\nContinuous batching answered 32 requests in ")
    content = json.loads((out / "batching-mixed_length.json").read_text())
    manifest = content["manifest"]
    assert manifest["max_num_seqs"] == 2 and manifest["compile_s"] > 0 and manifest["warm_up_s"] > 0
    assert manifest["ceilings"]["read_bytes_per_s"] > 0 and manifest["command"]
    assert manifest["setting"]["repeats"] == 2 and manifest["engine"]["samplers"] == ["greedy"]
    workload = make_workload(
        "mixed_length", num_prompts=32, seed=0, vocab_size=264, max_model_len=256, length_scale=0.1
    )
    assert content["workload"]["hash"] == workload.hash
    subject = FakeSubject(max_num_seqs=2, max_model_len=256)
    counted = climb(subject, list(ARMS.values()), workload, Setting(repeats=1))
    assert content["arms"].keys() == counted.keys()
    for name, arm in content["arms"].items():
        expected = counted[name].counts
        for field in (
            "num_steps",
            "decode_steps",
            "slot_steps",
            "useful_slot_steps",
            "output_tokens",
            "decode_wasted",
        ):
            assert arm[field] == getattr(expected, field), (name, field)
        assert len(arm["repeats"]) == 2 and arm["compilations_after_warmup"] == 0
        assert 0 < arm["device_busy_share"] <= 1.01 and arm["floor_share"] > 0
        assert arm["request_goodput"] == arm["request_throughput"]
        assert arm["p50_ttft_ms"] <= arm["p99_ttft_ms"] <= arm["p99_e2el_ms"]
        parts = [arm[f"mean_{part}_ms"] for part in ("fill", "queue", "prefill", "decode")]
        assert sum(parts) == pytest.approx(arm["mean_e2el_ms"]) and min(parts[1:]) > 0
        assert 0 < arm["kv_of_contiguous"] < 1 and arm["peak_pages_contiguous"] >= arm["peak_pages_used"]
    assert content["gains"]["slot_steps static-padded / continuous"] > 1
    assert f"{content['gains']['continuous / unbatched']:.2f} (3.2)" in ended.out
    pages = -(-manifest["max_model_len"] // 16)
    kib = 16 * manifest["kv_bytes_per_token"] / 1024
    assert f"A page is 16 tokens, {kib:,.0f} KiB;" in ended.out and f", {pages} pages, for each" in ended.out
    assert "…" not in ended.out, "a column is cut"
    assert all(f"  {name}: {arm.definition}" in ended.out.replace("\n", "") for name, arm in ARMS.items())


class Counting(FakeSubject):
    """Takes the place of an LLM."""

    def __init__(self, model, max_model_len, options, measure_floor=True, modes=()):
        super().__init__(max_num_seqs=options["max_num_seqs"], max_model_len=max_model_len)
        self.about = {"model": model, "max_num_seqs": self.max_num_seqs}
        self.policy = options.get("policy", "fcfs")

    def new_engine(self, arm, max_num_seqs):
        assert arm.policy == self.policy
        return super().new_engine(arm, max_num_seqs)

    def close(self):
        pass


def test_throughput_runs_the_policy_that_was_tuned(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "LLMSubject", Counting)
    sizes = dict.fromkeys(SIZES_OF_MODEL, 8)
    Tuned({"max_num_seqs": 2, "policy": "sjf"}, sizes, "cpu", version(), {}).write(tmp_path / "tuned.json")
    flags = ("--tuned", tmp_path / "tuned.json", "--input-len", "8", "--output-len", "4")
    for command, own in (("throughput", ("--num-prompts", "6")), ("latency", ("--batch-size", "2"))):
        ended = run(capsys, "bench", command, *flags, *own)
        assert ended.code == 0, ended.err


def test_throughput_and_latency_have_vllms_keys(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "LLMSubject", Counting)
    flags = ("--input-len", "8", "--output-len", "4", "--max-num-seqs", "2")
    file = tmp_path / "throughput.json"
    ended = run(capsys, "bench", "throughput", *flags, "--num-prompts", "6", "--output-json", file)
    assert ended.code == 0, ended.err
    content = json.loads(file.read_text())
    assert (content["kind"], content["num_requests"], content["total_num_tokens"]) == ("throughput", 6, 72)
    assert content["manifest"]["setting"]["num_prompts"] == 6
    assert content["tokens_per_second"] == pytest.approx(72 / content["elapsed_time"])
    assert content["requests_per_second"] == pytest.approx(6 / content["elapsed_time"])
    assert f"Throughput: {content['requests_per_second']:.2f} requests/s, " in ended.out
    assert "Total num prompt tokens:  48\nTotal num output tokens:  24\n" in ended.out

    file = tmp_path / "latency.json"
    flags += ("--batch-size", "2", "--num-iters-warmup", "1", "--num-iters", "3")
    ended = run(capsys, "bench", "latency", *flags, "--output-json", file)
    assert ended.code == 0, ended.err
    content = json.loads(file.read_text())
    assert len(content["latencies"]) == 3 and min(content["latencies"]) > 0
    assert content["avg_latency"] == pytest.approx(sum(content["latencies"]) / 3)
    assert list(content["percentiles"]) == ["10", "25", "50", "75", "90", "99"]


@pytest.mark.parametrize(
    "args, message",
    [
        ("report", "Missing argument 'DIR'. (see jbatch bench report --help)"),
        ("report a b", "unexpected extra argument(s) (b) (see jbatch bench report --help)"),
        ("report nowhere", "folder='nowhere': is no directory"),
        (
            "compare --repeat 3",
            "No such option: --repeat; did you mean --repeats? (see jbatch bench compare --help)",
        ),
        ("compare --repeats 2", "repeats=2: must be at least 3"),
        ("batching --model llama9", "model='llama9': must be a model directory or one of llama2-7b"),
        ("batching --dataset-name mixed", "dataset_name='mixed': must be one of uniform_short"),
        ("batching --arms dynamic", "arms='dynamic': must be one of unbatched"),
        ("batching --goodput itl:5", "goodput='itl:5': must limit one of ttft, tpot, e2el"),
        ("batching --num-prompts many", "num_prompts='many': must be an integer"),
        ("batching --repeats 0", "repeats=0: must be an integer from 1"),
        ("batching --load 0", "load=0.0: must be a number above 0"),
        ("batching --dataset-name nano", "does not fit max_model_len=1024; lower --length-scale"),
        ("batching --dataset-name nano --num-prefixes 2", "num_prefixes=2: is of prefix and few-shot only"),
        ("batching --dataset-name trace", "a trace needs a file: --dataset-path FILE.csv"),
        ("batching --dataset-name trace --dataset-path none.csv", "none.csv: cannot be read"),
        ("batching --max-num-seqs 0", "max_num_seqs=0: must be an integer from 1"),
        ("batching --batch-wait-timeout-s -1", "batch_wait_timeout_s=-1.0: must be a number of seconds"),
        ("batching --output-json EXISTS", "exists; results are never overwritten"),
        ("batching --output-dir EXISTS", "exists; results are never overwritten"),
        ("throughput --output-json EXISTS", "exists; results are never overwritten"),
        ("latency --output-json EXISTS", "exists; results are never overwritten"),
        ("latency --batch-size 0", "batch_size=0: must be an integer from 1"),
        ("latency --input-len 1000 --output-len 100", "a request of 1100 tokens does not fit"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(args, message, no_model, tmp_path, capsys):
    (tmp_path / "here").mkdir()
    ended = run(capsys, "bench", *args.replace("EXISTS", str(tmp_path / "here")).split())
    assert ended.code == 2 and message in ended.err, ended.err


def test_an_arm_that_fails_is_printed_and_gains_are_not(tmp_path, monkeypatch, capsys):
    class Breaks(CountingRunner):
        def submit(self, step):
            raise RuntimeError("out of memory")

    class Subject(Counting):
        def new_engine(self, arm, max_num_seqs):
            self.runner = Breaks if arm.name == "static-padded" else CountingRunner
            return super().new_engine(arm, max_num_seqs)

    monkeypatch.setattr(batching, "LLMSubject", Subject)
    file = tmp_path / "x.json"
    flags = ("--num-prompts", "16", "--length-scale", "0.05", "--max-num-seqs", "4", "--repeats", "1")
    ended = run(capsys, "bench", "batching", *flags, "--sweep", "--output-json", file)
    said = ended.err.splitlines()
    assert ended.code == 0 and all(line.startswith(("jbatch: sweep: ", "jbatch: pass ")) for line in said)
    assert sum("failed: repeat 1: RuntimeError: out of memory" in line for line in said) == 3, (
        "2 sizes, a pass"
    )
    assert "static-padded: not run: repeat 1: RuntimeError: out of memory" in ended.out
    assert "mixed_length: no gain is named: static-padded was not run" in ended.out
    assert "over those of unbatched" not in ended.out and " *" in ended.out
    content = json.loads(file.read_text())
    assert [size for size, _ in content["sweep"]["continuous"]] == [2, 4]
    assert content["sweep"]["static-padded"] == [] and content["arms"]["continuous"]["max_num_seqs"] in (2, 4)
    points = [
        dict(zip(content["sweep_fields"], p, strict=True)) for p in content["sweep_points"]["continuous"]
    ]
    assert [[point["max_num_seqs"], point["output_throughput"]] for point in points] == content["sweep"][
        "continuous"
    ]
    assert all(point["p50_e2el_ms"] > 0 and 0 < point["slot_use"] <= 1 for point in points)


def test_a_sweep_that_is_cut_leaves_its_points(tmp_path, monkeypatch):
    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(batching, "LLMSubject", Counting)
    monkeypatch.setattr(batching, "climb", cut)
    file = tmp_path / "x.json"
    with pytest.raises(KeyboardInterrupt):
        batching.run_batching(
            Experiment(arms=["continuous"], output_json=file),
            Setting(num_prompts=4, sweep=True),
            {"max_num_seqs": 2},
            {"length_scale": 0.05},
        )
    content = json.loads(file.read_text())
    assert [size for size, _ in content["sweep"]["continuous"]] == [2] and content["arms"] == {}


def test_two_datasets_do_not_go_into_one_file(no_model, tmp_path, capsys):
    names = ("--dataset-name", "uniform_short", "--dataset-name", "mixed_length")
    ended = run(capsys, "bench", "batching", *names, "--output-json", tmp_path / "x.json")
    assert ended.code == 2 and "holds one dataset; use --output-dir" in ended.err


def test_a_refused_model_leaves_no_file(tmp_path, capsys):
    """The output is claimed after all else that can be checked without work."""
    ended = run(capsys, "bench", "batching", "--max-num-seqs", "0", "--output-json", tmp_path / "x.json")
    assert ended.code == 2 and not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("command", ["", "batching", "throughput", "latency"])
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ended = run(capsys, "bench", *command.split(), "--help")
    assert ended.code == 0 and max(map(len, ended.out.splitlines())) <= 80


def test_the_command_line_imports_nothing_heavy():
    heavy = {"jax", "matplotlib", "torch", "numpy"}
    script = f"import sys, jbatch.cli.main, bench.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
