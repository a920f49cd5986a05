"""`jbatch bench compare` on the CPU: every arm with jbatch's tokens, and what happens to one without."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from bench import results
from bench.compare import command as compare
from bench.compare import cross_check as cross_check_module
from bench.compare.arms import ARMS, Arm, choose_arms
from bench.compare.cross_check import Disagreement, LogitGap, cross_check
from bench.compare.measurement import Measurement
from bench.compare.ratios import ratios
from bench.compare.ready import DrivenArm
from bench.flags import Comparison
from bench.options import Setting
from bench.workloads.workload import make_workload
from jbatch.errors import ConfigError
from jbatch.sim.plan_file import read_plans
from tests.helpers.hf_checkpoint import tiny, write_checkpoint
from tests.helpers.tiny_engine import (
    DECODE,
    MAX_MODEL_LEN,
    NUM_PAGES,
    NUM_ROWS,
    PAGE_SIZE,
    PREFILL,
    tiny_config,
    tiny_params,
)

ROOT = Path(__file__).parents[3]
ENGINE = {  # of tests/helpers/tiny_engine.py, whose programs are compiled already
    "device": "cpu",
    "max_num_seqs": NUM_ROWS,
    "max_model_len": MAX_MODEL_LEN,
    "page_size": PAGE_SIZE,
    "num_pages": NUM_PAGES,
    "decode_buckets": (DECODE.slots,),
    "token_buckets": (PREFILL.tokens,),
}
WORKLOAD = {"input_len": 12, "output_len": 10, "random_range_ratio": 0.9}
SETTING = Setting(num_prompts=10, seed=3, no_floor=True)
RUN_HERE = ("jbatch", "torch-paged", "hf-generate", "hf-continuous", "replay-jbatch", "replay-torch")

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, tiny())
    return path


@pytest.fixture(scope="module")
def compared(model_dir, tmp_path_factory):
    """One comparison of all arms, in which FlashAttention's has a cache full of holes."""
    out = tmp_path_factory.mktemp("out")
    comparison = Comparison(str(model_dir), "random", None, out / "results.json", out / "plans.jsonl")
    written = []

    def write(path, content):
        results.write(path, content)
        written.append(json.loads(path.read_text())["arms"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "write", write)
        patch.setitem(ARMS, "torch-paged-flash-attn", broken_arm())
        compare.compare(comparison, SETTING, ENGINE, WORKLOAD)
    return results.read(out / "results.json"), out, written


def broken_arm():
    """The PyTorch engine with an attention that forgets a sequence's first token."""
    from bench.compare.torch_engine.attention import gather_decode

    def forgetful(block_tables, kv_lens):
        attend = gather_decode(block_tables, kv_lens)

        def forget(q, kv_pages):
            kept = kv_pages.clone()
            kept[block_tables[:, 0].long(), :, :, 0] = 0
            return attend(q, kept)

        return forget

    def build(stage):
        whole = stage.torch_runner("auto")
        broken = type(whole)(whole.config, stage.tensors(), whole.shape, whole._buckets, beside=whole)
        broken._functions = whole._functions._replace(decode_attention=forgetful)
        return DrivenArm(stage, broken, broken.describe())

    return Arm("torch-paged-flash-attn", "broken", build)


def test_every_arm_that_can_run_here_agrees_and_is_timed(compared):
    arms = compared[0]["arms"]
    assert list(arms) == list(ARMS)
    for name in RUN_HERE:
        arm = arms[name]
        check = arm["check"]
        assert check["equal"] + check["near_ties"] == check["requests"] == 10
        assert check["compared_tokens"] > 60 and check["largest_gap"] <= check["tolerance"] == 1e-4
        assert len(arm["repeats"]) == 3 and min(arm["repeats"]) > 0 and arm["spread"] >= 0
        num_tokens = compared[0]["workload"]["num_output_tokens"]
        assert arm["output_throughput"] == pytest.approx(sorted(arm["repeats"])[1])
        assert arm["output_throughput"] == pytest.approx(num_tokens / arm["duration_s"])


def test_the_file_is_whole_after_each_arm_that_is_built_and_each_repeat(compared):
    written = compared[2]
    assert len(written) == len(ARMS) + 3
    timed = [sum("repeats" in arm for arm in arms.values()) for arms in written]
    assert timed == [0] * len(ARMS) + [len(RUN_HERE)] * 3
    first = written[0]
    assert "10 of 10 requests had the same tokens" in first["jbatch"]["not_run"]
    assert first["torch-paged"]["not_run"] == "the run was cut off before it was built and checked"


def test_the_arms_say_what_they_are_made_of(compared):
    arms = compared[0]["arms"]
    assert arms["torch-paged"]["attention"] == "gather"
    assert arms["torch-paged"]["execution"].startswith("eager; prefill: ")
    assert "packed keys of all sequences" in arms["hf-continuous"]["attention"]
    assert "static cache" in arms["hf-generate"]["execution"]
    assert arms["jbatch"]["attention"] == "xla (decode), xla (prefill)"
    assert compared[0]["manifest"]["versions"]["transformers"]


def test_an_arm_with_other_tokens_shows_no_time(compared):
    broken = compared[0]["arms"]["torch-paged-flash-attn"]
    assert set(broken) == {"label", "definition", "not_run"}
    assert "Disagreement" in broken["not_run"] and "below the best" in broken["not_run"]


def test_an_arm_that_cannot_run_says_why(compared):
    for name in ("torch-paged-flash-attn-3", "torch-paged-mosaic"):
        reason = compared[0]["arms"][name]["not_run"]
        assert "needs an NVIDIA GPU" in reason or "not installed" in reason


def test_both_executors_take_equal_steps(compared):
    """The scheduler drives both to the same steps, and the replays execute the recorded ones."""
    arms = compared[0]["arms"]
    counts = (
        "num_steps",
        "decode_steps",
        "prefill_steps",
        "slot_steps",
        "useful_slot_steps",
        "prefill_tokens",
    )
    assert [arms["jbatch"][name] for name in counts] == [arms["torch-paged"][name] for name in counts]
    plans = read_plans(compared[1] / "plans.jsonl").plans
    assert len(plans) == arms["jbatch"]["num_steps"]
    assert arms["replay-jbatch"]["num_steps"] == arms["replay-torch"]["num_steps"] == len(plans)


def test_ratios_are_of_like_with_like(compared):
    arms, gains = compared[0]["arms"], compared[0]["gains"]
    over = arms["jbatch"]["output_throughput"] / arms["torch-paged"]["output_throughput"]
    assert gains["jbatch / torch-paged"] == pytest.approx(over)
    assert "replay-jbatch / replay-torch" in gains and "jbatch / replay-torch" not in gains
    assert "jbatch / torch-paged-mosaic" not in gains
    assert "10 requests are fewer than 16 static batches of" in gains["jbatch / hf-generate"]["refused"]


def test_an_arm_of_which_little_was_compared_is_not_trusted():
    workload = make_workload("random", num_prompts=64, seed=0, vocab_size=99, max_model_len=256)
    rates = results.Rates(1.0, 0.0, 1.0, 9.0, 1.0, None, None, None)

    def arm(share):
        check = {"compared_tokens": round(share * workload.num_output_tokens)}
        return results.ArmResult("", "", max_num_seqs=4, rates=rates, extra={"check": check})

    arms = {"jbatch": arm(1.0), "torch-paged": arm(0.19), "hf-generate": arm(0.3)}
    named = ratios(arms, workload)
    assert named["jbatch / hf-generate"] == 1.0
    assert named["jbatch / torch-paged"] == {
        "refused": "torch-paged is not trusted: only 19% of its tokens could be compared"
    }


def test_the_table_shows_each_arm_or_why_not(compared, capsys):
    from bench.compare.table import print_comparison

    content = compared[0]
    arms = {name: arm_result(arm) for name, arm in content["arms"].items()}
    print_comparison(
        results.Results("compare", content["manifest"], content["workload"], arms, gains=content["gains"])
    )
    shown = capsys.readouterr().out
    assert all(name in shown for name in ARMS) and shown.count("not run:") == 3
    assert "10 of 10" in shown and "100%" in shown and "compared" in shown
    assert "jbatch / hf-generate: no ratio: 10 requests" in shown


def arm_result(arm):
    if "not_run" in arm:
        return results.ArmResult(arm["label"], arm["definition"], not_run=arm["not_run"])
    rates = results.Rates(**{name: arm[name] for name in results.Rates.__dataclass_fields__})
    return results.ArmResult(
        arm["label"], arm["definition"], rates=rates, repeats=tuple(arm["repeats"]), extra=arm
    )


# Refusals, and the parts.


def test_what_cannot_be_compared_is_refused_before_any_work(model_dir, tmp_path):
    def run(comparison, setting=SETTING, engine=ENGINE):
        compare.compare(comparison, setting, engine, WORKLOAD)

    with pytest.raises(ConfigError, match="arms='vllm': must be one of jbatch, torch-paged"):
        run(Comparison(str(model_dir), "random", ["vllm"]))
    with pytest.raises(ConfigError, match="repeats=2: must be at least 3"):
        run(Comparison(str(model_dir), "random"), Setting(num_prompts=4, repeats=2))
    with pytest.raises(ConfigError, match="dataset_name='rnadom'"):
        run(Comparison(str(model_dir), "rnadom"))
    with pytest.raises(ConfigError, match="model='8b': must be a model directory or one of"):
        run(Comparison("8b", "random"))
    taken = tmp_path / "taken.json"
    taken.write_text("{}")
    with pytest.raises(ConfigError, match="exists"):
        run(Comparison(str(model_dir), "random", output_json=taken))


def test_arms_by_name():
    names = [arm.name for arm in choose_arms(["hf-generate", "replay"])]
    assert names == ["jbatch", "hf-generate", "replay-jbatch", "replay-torch"]


def test_the_check_knows_near_ties_from_errors():
    def gap(context, token):
        return {5: 0.0, 6: 5e-5, 7: 0.1, 8: float("nan")}[token]

    prompts, reference = [[1, 2], [3]], [[5, 5, 5], [5, 5]]
    agreement = cross_check(prompts, reference, [[5, 6, 9], [5, 5]], gap, 1e-4)
    assert agreement == (2, 1, 1, 5e-5, 1e-4, 3)
    for wrong in ([[5, 7, 5], [5, 5]], [[5, 8, 5], [5, 5]], [[5, 5], [5, 5]]):
        with pytest.raises(Disagreement):
            cross_check(prompts, reference, wrong, gap, 1e-4)


def test_logit_gaps_are_those_of_transformers(model_dir):
    from bench.compare import hugging_face
    from bench.compare.torch_engine.model import from_jax

    model = hugging_face.build(model_dir, from_jax(tiny_params()))
    context = [5, 9, 60, 3, 3, 17]
    with torch.no_grad():
        logits = model(torch.tensor([context])).logits[0, -1].numpy()
    gap = LogitGap(tiny_config(), tiny_params(), longest=9)
    for token in (int(logits.argmax()), 3, 95):
        assert gap(context, token) == pytest.approx(float(logits.max() - logits[token]), abs=1e-4)
    assert np.isfinite(logits).all()


def test_one_program_and_one_pass_give_the_gaps_of_a_context(monkeypatch):
    passes = []

    def last_logits(config):
        return lambda params, ids, length: passes.append((len(ids), length)) or np.arange(96.0)

    monkeypatch.setattr(cross_check_module, "_last_logits", last_logits)
    gap = LogitGap(tiny_config(), {}, longest=9)
    assert [gap([5, 9], 95), gap([5, 9], 90), gap([5, 9, 4], 94)] == [0.0, 5.0, 1.0]
    assert passes == [(9, 2), (9, 3)]


def test_a_jbatch_that_fails_is_an_error_and_another_arm_is_not(monkeypatch):
    def fail(stage):
        raise MemoryError("no room")

    measurement = Measurement(Arm("x", "y", fail))
    measurement.attempt("not built", lambda: fail(None))
    assert measurement.not_run == "not built: MemoryError: no room"
    measurement.attempt("repeat 1", lambda: pytest.fail("it must not be tried again"))


def test_light_modules_import_neither_torch_nor_jax():
    light = ("arms", "command", "cross_check", "measurement", "ratios", "ready", "stage", "table")
    names = ", ".join(f"bench.compare.{name}" for name in light)
    heavy = "{'torch', 'jax', 'transformers', 'triton'}"
    script = f"import sys, {names}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_file_is_strict_json(compared):
    text = (compared[1] / "results.json").read_text()
    assert json.loads(text)["kind"] == "compare" and "NaN" not in text
