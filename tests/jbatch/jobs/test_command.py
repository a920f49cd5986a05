"""What `jbatch generate -i` refuses: exit code 2 and one line, before anything is written."""

import json
import os

import pytest

from tests.helpers.fake_job import JOB, check_whole, num_results, refuse, run, run_here, write_input
from tests.helpers.faults import Faults


@pytest.mark.parametrize(
    "args, message",
    [
        (("-i", "in.jsonl"), "output_file=None: a job needs both -i and -o"),
        (("-o", "out.jsonl"), "input_file=None: a job needs both -i and -o"),
        ((*JOB, "-p", "x"), "-p takes none of the options of -i"),
        ((), "give prompts (-p), or an input and an output file (-i and -o)"),
        ((*JOB, "--shard", "3/2"), "shard='3/2': must be i/n, with i from 1 to n"),
        ((*JOB, "--max-model-len", "129"), "max_model_len=129: must be at most 128, the model's context"),
        (("-i", "none.jsonl", "-o", "out.jsonl", "--max-model-len", "129"), "max_model_len=129: must be at"),
        ((*JOB, "--temperature", "-1"), "temperature=-1.0: must be a number from 0 to 100"),
        (("-i", "in.jsonl", "-o", "-", "--ordered"), "ordered=True: needs an output file, and -o is none"),
        (("-i", "in.jsonl", "-o", "/dev/null", "--retry-errors"), "retry_errors=True: needs an output file"),
        (
            ("-i", "none.jsonl", "-o", "out.jsonl"),
            "input_file='none.jsonl': cannot be read: No such file or directory",
        ),
        (("-i", "in.jsonl", "-o", "no/out.jsonl"), ": there is no folder "),
        (("-i", "model", "-o", "out.jsonl"), "input_file='model': cannot be read: Is a directory"),
        (("-i", "in.jsonl", "-o", "model"), "output='model': is a folder"),
        ((*JOB, "--chat-template", "/none"), "chat_template='/none': cannot be read: No such file"),
        ((*JOB, "--summary", "no/figures.json"), "No such file or directory: '"),
        ((*JOB, "--summary", "-"), "summary='-': must be a file"),
        ((*JOB, "--summary", "model"), "summary='model': must be a file"),
        ((*JOB, "--summary", "/dev/null"), "summary='/dev/null': must be a file"),
        (("-i", "in.jsonl", "-o", "in.jsonl"), "is the same file as input=in.jsonl"),
        (("-i", "in.jsonl", "-o", "hard.jsonl"), "is the same file as input=in.jsonl"),
        (("-i", "in.jsonl", "-o", "soft.jsonl"), "is the same file as input=in.jsonl"),
        (("-i", "soft.jsonl", "-o", "in.jsonl"), "is the same file as input=soft.jsonl"),
        ((*JOB, "--summary", "in.jsonl"), "is the same file as "),
        ((*JOB, "--summary", "out.jsonl"), "is the same file as "),
        ((*JOB, "--summary", "out.jsonl.job.json"), "is the same file as "),
    ],
)
def test_what_makes_no_sense(place, args, message):
    write_input(place, 3)
    before = (place / "in.jsonl").read_bytes()
    os.link(place / "in.jsonl", place / "hard.jsonl")
    os.symlink("in.jsonl", place / "soft.jsonl")
    assert message in refuse(place, *args)
    assert (place / "in.jsonl").read_bytes() == before and not (place / "out.jsonl").exists()


def test_duplicates_are_refused_before_anything_is_written(place):
    lines = [json.dumps({"prompt": "05.", "custom_id": name}) for name in ("a", "b", "c", "b")]
    (place / "in.jsonl").write_text("\n".join(lines))
    assert refuse(place, *JOB).startswith("custom_id='lines 2 and 4': the same id twice")
    assert not (place / "out.jsonl").exists()


def edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "change, args, message",
    [
        (lambda d: edit(d / "in.jsonl", "request 1", "request I"), (), "another input ("),
        (lambda d: edit(d / "model/config.json", ": 32", ": 64"), (), "model (config.json)"),
        (lambda d: (d / "model/model.safetensors").write_bytes(b"other"), (), "model (model.safetensors)"),
        (lambda d: (d / "model/chat_template.jinja").write_bytes(b"{{}}"), (), "model (chat_template.jinja)"),
        (None, ("--temperature", "0.5"), "another temperature (0.0, now 0.5). "),
        (None, ("--temperature", "0", "--top-p", "0.5"), "another top_p (default, now 0.5). "),
        (None, ("--temperature", "0", "--seed", "7"), "another seed (0, now 7). "),
        (None, ("--temperature", "0", "--max-model-len", "64"), "another max_model_len (default, now 64). "),
        (None, ("--temperature", "0", "--shard", "1/2"), "another shard (1/1, now 1/2). "),
        (None, ("--temperature", "0", "--chat-template", "{{ 1 }}"), "another model (--chat-template). "),
        (lambda d: (d / "out.jsonl.job.json").unlink(), (), "job.json does not say of what job"),
        (lambda d: (d / "out.jsonl.job.json").write_text("{"), (), "job.json does not say of what job"),
    ],
)  # fmt: skip
def test_another_job_does_not_go_on_with_an_output(place, change, args, message):
    write_input(place, 9)
    (place / "model/model.safetensors").write_bytes(b"weights")
    assert run(place, *JOB, "--temperature", "0", faults=Faults(kill_at_step=6)).code == -9
    before = (place / "out.jsonl").read_bytes()
    if change is not None:
        change(place)
    args = args or ("--temperature", "0")
    assert message in refuse(place, *JOB, *args) and (place / "out.jsonl").read_bytes() == before
    ended = run(place, *JOB, *args, "--force")
    assert ended.code == 0 and num_results(place / "out.jsonl") >= 9 // (1 + ("1/2" in args))


def test_lines_without_max_tokens_need_the_same_room(place):
    """Five pages hold less than the context; eight hold it, and more make no difference."""
    lines = [{"prompt": f"{n:02}.", "custom_id": f"request {n}"} for n in range(3, 9)]
    (place / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = run(place, *JOB, "--num-pages", "6", faults=Faults(kill_at_step=30))
    assert ended.code == -9 and num_results(place / "out.jsonl") == 0
    ended = run(place, *JOB, "--num-pages", "5", faults=Faults(kill_at_step=90))
    assert ended.code == -9 and num_results(place / "out.jsonl") > 0
    assert "warning: 6 outputs without max_tokens are cut at 64 tokens" in ended.err
    before = (place / "out.jsonl").read_bytes()
    message = refuse(place, *JOB)
    assert "had room for 64 tokens, prompt included; now the cache and max_model_len have 128" in message
    assert (place / "out.jsonl").read_bytes() == before
    ended = run(place, *JOB, "--force")
    assert ended.code == 0 and "warning: 6" not in ended.err
    (place / "out.jsonl").unlink()
    assert run(place, *JOB, "--num-pages", "9").code == 0
    (place / "out.jsonl").write_bytes(b"".join((place / "out.jsonl").read_bytes().splitlines(True)[:3]))
    assert run(place, *JOB, "--num-pages", "20").code == 0


def test_another_device_does_not_go_on_with_an_output(place):
    write_input(place, 9)
    here = {"device_kind": "cpu", "jax": "0.10.2"}
    assert run_here(place, *JOB, numerics=here).code == 0
    raw = (place / "out.jsonl").read_bytes()
    (place / "out.jsonl").write_bytes(raw[: raw.index(b"\n") + 1])
    before = (place / "out.jsonl").read_bytes()
    refused = run_here(place, *JOB, numerics={"device_kind": "NVIDIA H200", "jax": "0.10.2"})
    assert refused.code == 2 and (place / "out.jsonl").read_bytes() == before
    assert "was begun with another device_kind (cpu, now NVIDIA H200). Take another output, or" in refused.err
    assert run_here(place, *JOB, "--force", numerics={"device_kind": "NVIDIA H200"}).code == 0
    check_whole(place / "out.jsonl", range(1, 10))
    (place / "out.jsonl").write_bytes(before)
    assert "another device_kind (NVIDIA H200, now cpu)" in run_here(place, *JOB, numerics=here).err
    state = json.loads((place / "out.jsonl.job.json").read_text())
    del state["numerics"]  # as an earlier version wrote it
    (place / "out.jsonl.job.json").write_text(json.dumps(state))
    assert run_here(place, *JOB, numerics=here).code == 0


@pytest.mark.parametrize("name", ["out.jsonl.lock", "out.jsonl.job.json"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_files_of_the_user_s_stay(place, name, kind):
    write_input(place, 3)
    (place / "thesis").write_text("precious")
    (place / name).write_text("my notes") if kind == "file" else os.symlink("thesis", place / name)
    refused = run_here(place, *JOB)
    assert refused.code == 2 and name in refused.err.splitlines()[-1]
    assert (place / "thesis").read_text() == "precious" and not (place / "out.jsonl").exists()
    assert (place / name).read_text() == ("my notes" if kind == "file" else "precious")


def test_outputs_keep_their_modes(place):
    write_input(place, 30)
    assert run_here(place, *JOB, "--summary", "figures.json").code == 1
    names = ("out.jsonl", "out.jsonl.job.json", "figures.json")
    for name in names:
        (place / name).chmod(0o640)
    extra = ("--retry-errors", "--ordered", "--summary", "figures.json", "--seed", "3", "--force")
    assert run_here(place, *JOB, *extra).code == 1
    assert {name: (place / name).stat().st_mode & 0o777 for name in names} == dict.fromkeys(names, 0o640)


def write_defaults(place, **values):
    (place / "model/generation_config.json").write_text(json.dumps(values))


def test_sampling_defaults_of_the_model(place):
    """They hold for lines that name no other and where no flag does, and both summaries say so."""
    write_defaults(place, temperature=0.6, max_new_tokens=4, eos_token_id=2)
    lines = [{"prompt": "05."}, {"prompt": "05.", "max_tokens": 7}, {"prompt": "05.", "max_tokens": None}]
    lines.append({"prompt": "05." * 126})  # room for two tokens
    lines.append({"prompt": "05." * 126, "max_tokens": 4})
    (place / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = run(place, *JOB, "--summary", "figures.json", "--num-pages", "20", "--ignore-eos")
    results = [json.loads(line) for line in (place / "out.jsonl").read_bytes().splitlines()]
    answers = {result["custom_id"]: len(result["token_ids"]) for result in results if "error" not in result}
    assert ended.code == 1 and answers == {"line-1": 4, "line-2": 7, "line-3": 4, "line-4": 2}
    said = "jbatch: from the model's generation_config.json, where not set: max_tokens=4, temperature=0.6"
    assert ended.err.splitlines().count(said) == 2, "before and after"
    figures = json.loads((place / "figures.json").read_text())
    assert figures["model_defaults"] == {"max_tokens": 4, "temperature": 0.6}
    state = json.loads((place / "out.jsonl.job.json").read_text())
    assert state["sampling"] == {"ignore_eos": True, "max_tokens": 4, "temperature": 0.6}
    assert state["room"] == 128, "where the fourth ends depends on it"
    (place / "out.jsonl").unlink()
    ended = run(place, *JOB, "--temperature", "0", "--max-tokens", "3", "--summary", "figures.json")
    assert "from the model's" not in ended.err
    assert json.loads((place / "figures.json").read_text())["model_defaults"] == {}


def test_a_job_of_other_sampling_defaults_is_another_job(place):
    """As one is that was begun before jbatch looked at them."""
    write_defaults(place, temperature=0.6)
    write_input(place, 9)
    own = ("--generation-config", "jbatch")
    assert run(place, *JOB, *own, faults=Faults(kill_at_step=6)).code == -9
    assert "another temperature (default, now 0.6). " in refuse(place, *JOB)
    assert run(place, *JOB, *own).code == 0
    check_whole(place / "out.jsonl", range(1, 10))


def test_sampling_defaults_that_no_request_may_have(place):
    write_defaults(place, top_p=2)
    write_input(place, 3)
    assert refuse(place, *JOB).startswith("top_p=2: must be a number from 0 to 1 (in generation_config.json")


def test_force_does_not_touch_what_is_no_output(place):
    write_input(place, 9)
    (place / "out.jsonl").write_text("Dear diary,\ntoday I")
    assert "does not say of what job" in refuse(place, *JOB)
    assert "line 1 is no result with a custom_id" in refuse(place, *JOB, "--force", "--retry-errors")
    assert (place / "out.jsonl").read_text() == "Dear diary,\ntoday I"


def test_another_batch_size_goes_on(place):
    write_input(place, 9)
    assert run(place, *JOB, faults=Faults(kill_at_step=3)).code == -9
    assert run(place, *JOB, "--max-num-seqs", "2", "--page-size", "16").code == 0
    check_whole(place / "out.jsonl", range(1, 10))


def test_a_job_without_results_may_change(place):
    """Its first run ended before an answer came: there is nothing to protect."""
    write_input(place, 9)
    assert run(place, *JOB, faults=Faults(kill_at_step=1)).code == -9
    assert (place / "out.jsonl").read_bytes() == b""
    assert run(place, *JOB, "--temperature", "0.5").code == 0
