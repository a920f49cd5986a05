"""The harness's own tasks and metrics, with jbatch and with the harness's `hf` model on the same weights.

Not among the tests of `make test`: the harness has many dependencies. `make test-lm-eval` runs them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
from lm_eval.tasks import TaskManager

import jbatch.lm_eval
from jbatch.errors import ConfigError, JBatchError
from weights.demo import tasks as demo

ROOT = Path(__file__).resolve().parents[3]
DEMO = Path(demo.__file__).parent
MAX_LENGTH = 96  # so that some contexts and texts are too long
JBATCH = {"pretrained": str(DEMO), "dtype": "float32", "page_size": 16, "max_length": MAX_LENGTH}
FEW_PROGRAMS = {"max_num_seqs": 4, "decode_buckets": [4], "token_buckets": [64]}
HF = {"pretrained": str(DEMO), "dtype": "float32", "max_length": MAX_LENGTH}
NUM_DOCS = 24

TASKS: dict[str, dict[str, Any]] = {
    "demo_answers": {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "9"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "demo_choices": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "demo_empty_context": {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    },
    "demo_texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
}


def documents() -> list[dict[str, Any]]:
    rng = random.Random(0)
    documents = []
    for i, example in enumerate(demo.demo_prompts(NUM_DOCS, seed=5)):
        choices = [example.answer, example.answer[::-1] + "1", "zz", str(rng.randrange(1000))]
        rng.shuffle(choices)
        prompt = ("x" * 70 if i % 6 == 0 else "") + example.prompt  # longer than the context
        text = " ".join(
            e.prompt + e.answer for e in demo.demo_prompts(rng.randint(1, 8), seed=rng.randrange(2**31))
        )
        documents.append(
            {
                "prompt": prompt,
                "answer": example.answer,
                "choices": choices,
                "gold": choices.index(example.answer),
                "text": text,
            }
        )
    return documents


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory) -> Path:
    """Tasks as a user writes them: YAML (of which JSON is a part) and a local JSONL file."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "demo.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in documents()))
    for name, task in TASKS.items():
        whole = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            "target_delimiter": "",
            "metadata": {"version": 1.0},
        }
        (folder / f"{name}.yaml").write_text(json.dumps(whole | task, indent=1))
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache_dir(tmp_path_factory):
    """Of the data set library, which otherwise writes to the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


def evaluate(model: str, args: dict[str, Any], task_dir: Path) -> dict[str, Any]:
    return lm_eval.simple_evaluate(
        model=model,
        model_args=args,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(task_dir), include_defaults=False),
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
    )


@pytest.fixture(scope="module")
def both(task_dir) -> tuple[dict[str, Any], dict[str, Any]]:
    return evaluate("jbatch", JBATCH | FEW_PROGRAMS, task_dir), evaluate("hf", HF, task_dir)


@pytest.mark.parametrize("task", TASKS)
def test_equal_metrics(both, task):
    mine, theirs = (run["results"][task] for run in both)
    names = [name for name in theirs if name.endswith(",none") and "stderr" not in name]
    assert names and mine.keys() == theirs.keys()
    for name in names:
        assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_the_metrics_say_something(both):
    results = both[0]["results"]
    assert 0.3 < results["demo_answers"]["exact_match,none"] < 1, (
        "9 ends some answers, and some prompts are cut"
    )
    assert 0.5 < results["demo_choices"]["acc,none"] <= 1
    assert results["demo_empty_context"]["acc,none"] < results["demo_choices"]["acc,none"]
    assert results["demo_texts"]["bits_per_byte,none"] > 0.1


@pytest.mark.parametrize("task", TASKS)
def test_equal_answers(both, task):
    """Every single one: text, log-probability, and whether it is the greedy one."""
    mine, theirs = (sorted(run["samples"][task], key=lambda sample: sample["doc_id"]) for run in both)
    assert len(mine) == len(theirs) == NUM_DOCS
    for a, b in zip(mine, theirs, strict=True):
        assert a["doc"] == b["doc"]
        for ours, hf in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
            if isinstance(hf, str):
                assert ours == hf
            elif isinstance(hf, float):
                assert ours == pytest.approx(hf, abs=1e-3)
            else:
                assert ours[0] == pytest.approx(hf[0], abs=1e-3) and ours[1] == hf[1]


def test_the_cases_are_there(both):
    """Greedy answers and others; texts of several windows; contexts that are cut; stop strings that end."""
    samples = both[0]["samples"]
    greedy = {bool(resp[1]) for sample in samples["demo_choices"] for resp in sample["filtered_resps"]}
    assert greedy == {True, False}
    texts = [sample["doc"]["text"] for sample in samples["demo_texts"]]
    assert max(map(len, texts)) > 2 * MAX_LENGTH and min(map(len, texts)) < MAX_LENGTH
    assert any(len(sample["doc"]["prompt"]) > MAX_LENGTH for sample in samples["demo_choices"])
    answers = [sample["filtered_resps"][0] for sample in samples["demo_answers"]]
    assert not any("9" in answer for answer in answers)
    assert any("9" in sample["doc"]["answer"] for sample in samples["demo_answers"])


# ---- the model by itself ----


@pytest.fixture(scope="module")
def model():
    return jbatch.lm_eval.JBatchLM(**JBATCH, **FEW_PROGRAMS, device="cpu", batch_size=1, max_batch_size=None)


def requests(kind: str, *args: tuple) -> list[Any]:
    return [
        lm_eval.api.instance.Instance(request_type=kind, doc={}, arguments=arguments, idx=i)
        for i, arguments in enumerate(args)
    ]


def test_a_continuation_is_a_conditional_probability(model):
    """ln p(ab | c) = ln p(a | c) + ln p(b | ca)."""
    whole, first, second = model.loglikelihood(
        requests("loglikelihood", ("12+345=", "357"), ("12+345=", "3"), ("12+345=3", "57"))
    )
    assert whole[0] == pytest.approx(first[0] + second[0], abs=1e-4) and whole[1] is True
    assert -0.1 < whole[0] < 0


def test_sampling(model):
    """Temperature takes effect where do_sample is asked for, and only there."""
    options = {"until": [], "max_gen_toks": 12, "temperature": 5.0}
    args = [("12+345=", options | {"do_sample": True})] * 3 + [
        ("12+345=", options | {"do_sample": False})
    ] * 2
    texts = model.generate_until(requests("generate_until", *args))
    assert len(set(texts[:3])) == 3 and texts[3] == texts[4] == "357"


def test_more_stop_strings_than_an_engine_takes(model):
    until = [f"never{i}" for i in range(20)] + ["5"]
    options = {"until": until, "max_gen_toks": 12}
    assert model.generate_until(requests("generate_until", ("12+345=", options))) == ["3"]


def test_what_cannot_be_served(model):
    with pytest.raises(ConfigError, match=f"max_gen_toks={MAX_LENGTH}: "):
        model.generate_until(requests("generate_until", ("1+1=", {"max_gen_toks": MAX_LENGTH})))
    with pytest.raises(TypeError, match="num_beams"):
        model.generate_until(requests("generate_until", ("1+1=", {"num_beams": 4, "max_gen_toks": 8})))
    with pytest.raises(JBatchError, match="continuation of"):
        model.loglikelihood(requests("loglikelihood", ("1+1=", "2" * 200)))
    with pytest.raises(ConfigError, match="max_model_len=1025: must be at most 1024"):
        jbatch.lm_eval.JBatchLM(str(DEMO), max_length=1024)


def test_nothing_to_do(model):
    assert model.loglikelihood([]) == model.generate_until([]) == model.loglikelihood_rolling([]) == []


def test_continuations_of_one_context_share_it():
    """They come close to each other, and not at once."""
    from jbatch.integrations.lm_eval import _sharing_order

    contexts = [(1,), (1,), (2,), (1,), (3,), (3,)]
    assert _sharing_order(contexts) == [0, 2, 4, 1, 5, 3]
    model = jbatch.lm_eval.JBatchLM(**JBATCH, **FEW_PROGRAMS)
    context = "sort 83120=01238 " * 4
    alone = [model.loglikelihood(requests("loglikelihood", (context, answer)))[0] for answer in "123"]
    model.llm.reset_prefix_cache()
    before = model.llm.engine.summary
    together = model.loglikelihood(requests("loglikelihood", *[(context, answer) for answer in "123"]))
    assert [score for score, _ in together] == pytest.approx([score for score, _ in alone], abs=1e-4)
    after = model.llm.engine.summary
    assert after.looked_up > before.looked_up


def test_the_command_line(task_dir, tmp_path):
    """`python -m jbatch.lm_eval`, as a user runs it."""
    args = ",".join(
        f"{name}={value}"
        for name, value in (JBATCH | {"max_num_seqs": 1, "max_num_batched_tokens": 64}).items()
    )
    command = [sys.executable, "-m", "jbatch.lm_eval", "run", "--model", "jbatch", "--model_args", args,
               "--tasks", "demo_choices", "--include_path", task_dir, "--device", "cpu",
               "--output_path", tmp_path / "out"]  # fmt: skip
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|demo_choices|" in done.stdout and "acc" in done.stdout
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["demo_choices"]["acc,none"] > 0.5
