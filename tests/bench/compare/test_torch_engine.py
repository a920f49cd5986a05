"""The PyTorch executor under jbatch's engine and scheduler, beside jbatch's own runner."""

import numpy as np
import pytest

from jbatch import SamplingParams
from jbatch.device.model import abstract_params
from jbatch.errors import ConfigError, JBatchError
from jbatch.host.plan import Chunk, Draw, PageCopy, StepPlan, TableUpdate
from jbatch.model_dir.config_json import parse_config
from jbatch.outputs import FinishReason
from jbatch.sampler import Sampler
from jbatch.seam.bucket import decode_bucket
from jbatch.seam.rows import RowSetup
from jbatch.seam.step_input import StepInput, padding, unpack
from jbatch.sim.plan_file import PlanWriter, Recording, read_plans
from jbatch.sim.replay import replay, tokens_by_sequence
from tests.helpers.hf_checkpoint import tiny, write_checkpoint
from tests.helpers.tiny_engine import (
    DECODE,
    MIXED,
    NUM_PAGES,
    PREFILL,
    SHAPE,
    drain,
    generate_alone,
    make_engine,
    make_runner,
    make_scheduler,
    shared_runner,
    tiny_config,
    tiny_params,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bench.compare import hugging_face  # noqa: E402, torch may be missing
from bench.compare.torch_engine.kernels import choose  # noqa: E402
from bench.compare.torch_engine.model import build, from_jax  # noqa: E402
from bench.compare.torch_engine.runner import Options, TorchRunner  # noqa: E402
from bench.compare.torch_engine.sampling import gumbel  # noqa: E402
from bench.workloads.workload import WorkItem  # noqa: E402

torch.set_num_threads(1)

FAMILIES = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied, one KV head, yarn": {
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                            "original_max_position_embeddings": 32},
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
}  # fmt: skip


@pytest.fixture(scope="module")
def torch_runner():
    return TorchRunner(tiny_config(), from_jax(tiny_params()), SHAPE, [PREFILL, DECODE, MIXED])


def requests(case, count=9, **options):
    """Prompts longer than a step among them, so that some come in chunks."""
    rng = np.random.default_rng(case)
    for idx in range(count):
        prompt = rng.integers(3, 96, rng.choice((1, 5, 16, 17, 40, 70))).tolist()
        yield (
            str(idx),
            prompt,
            SamplingParams(**{"temperature": 0, "max_tokens": int(rng.integers(1, 24)), **options}),
        )


def run(runner, case, *, mode="continuous", scheduler=None, **options):
    engine = make_engine(scheduler or make_scheduler(mode), runner)
    for request in requests(case, **options):
        engine.add_request(*request)
    outputs = drain(engine)
    return {
        key: (output.outputs[0].token_ids, output.outputs[0].finish_reason) for key, output in outputs.items()
    }


@pytest.mark.parametrize("mode", ["continuous", "static", "static-padded"])
def test_tokens_are_those_of_jbatch(torch_runner, mode):
    ours, theirs = (run(runner, 1, mode=mode, ignore_eos=True) for runner in (torch_runner, shared_runner()))
    assert ours == theirs
    assert len(ours) == 9 and all(reason == FinishReason.LENGTH for _, reason in ours.values())


def test_preempted_requests_too(torch_runner):
    """Nine pages for four rows."""
    for runner in (torch_runner, shared_runner()):
        scheduler = make_scheduler(num_pages=10)
        engine = make_engine(scheduler, runner)
        for request in requests(2, max_tokens=20):
            engine.add_request(*request)
        drain(engine)
        assert engine.summary.num_preempted
    few, many = (
        run(torch_runner, 2, scheduler=make_scheduler(num_pages=n), max_tokens=20) for n in (10, NUM_PAGES)
    )
    assert few == many == run(shared_runner(), 2, max_tokens=20)


def test_stop_ids_and_min_tokens(torch_runner):
    """Stop ids that greedy decoding meets: each request's own third and fifth token."""
    free = run(shared_runner(), 3, max_tokens=12)
    stops = sorted({tokens[idx] for tokens, _ in free.values() for idx in (2, 4)})[:16]
    for min_tokens in (0, 7):
        options = {"max_tokens": 12, "stop_token_ids": stops, "min_tokens": min_tokens}
        ours, theirs = (run(runner, 3, **options) for runner in (torch_runner, shared_runner()))
        assert ours == theirs
        stopped = [tokens for tokens, reason in ours.values() if reason == FinishReason.STOP]
        assert stopped and all(len(tokens) > min_tokens for tokens in stopped)


def test_a_recorded_run_replays_alike_in_both(torch_runner, tmp_path):
    engine = make_engine(make_scheduler(num_pages=10), shared_runner())
    for request in requests(4, max_tokens=20):
        engine.add_request(*request)
    outputs = {}
    with PlanWriter(tmp_path / "plans", SHAPE, tiny_config().vocab_size) as writer:
        while engine.has_unfinished:
            step = engine.step()
            outputs |= {output.request_id: output.outputs[0].token_ids for output in step.outputs}
            if step.plan is not None:
                writer.write(step.plan)
    recording = read_plans(tmp_path / "plans")
    assert any(plan.preempted for plan in recording.plans)
    for runner in (torch_runner, shared_runner()):
        tokens = tokens_by_sequence(recording, replay(runner, recording).outputs)
        assert {key: tokens[int(key)] for key in outputs} == outputs


def mixed_plans(rng):
    """Sequence 0 decodes while a prompt comes: sequence 1 goes on behind it, 2 behind its sixth token, on a
    copy of its page. Another prompt comes in two chunks, and is then given two tokens at once."""
    first, second, third = (tuple(rng.integers(3, 96, n).tolist()) for n in (20, 24, 40))
    seq_ids, behind_prompt = (0, 1, 2), RowSetup(length=20, budget=20)
    yield StepPlan(
        0,
        PREFILL,
        chunks=(Chunk(0, 0, first, 0, draws=(Draw(0, 0, 19, behind_prompt),)),),
        table_updates=(TableUpdate(0, 0, 1), TableUpdate(0, 1, 2)),
    )
    draws = (Draw(1, 1, 23, behind_prompt), Draw(2, 2, 5, behind_prompt))
    yield StepPlan(
        1,
        MIXED,
        seq_ids=(0,),
        rows=(0,),
        chunks=(Chunk(1, 1, second, 0, draws=draws),),
        table_updates=(TableUpdate(1, 0, 3), TableUpdate(1, 1, 4), TableUpdate(2, 0, 5)),
    )
    pages = tuple(TableUpdate(3, idx, 6 + idx) for idx in range(3))
    chunk = Chunk(3, 3, third[:16], 0)
    copies = (PageCopy(3, 5),)
    yield StepPlan(2, MIXED, seq_ids, seq_ids, chunks=(chunk,), table_updates=pages, page_copies=copies)
    chunk = Chunk(3, 3, third[16:], 16, draws=(Draw(3, 3, 23, behind_prompt),))
    yield StepPlan(3, MIXED, seq_ids, seq_ids, chunks=(chunk,))
    yield StepPlan(
        4, MIXED, seq_ids, seq_ids, chunks=(Chunk(3, 3, (7, 8), 40, draws=(Draw(3, 3, 1, None),)),)
    )
    yield StepPlan(5, DECODE, (3, *seq_ids), (3, *seq_ids))


def test_mixed_steps_draw_the_tokens_of_jbatch(torch_runner):
    ours = make_runner(Sampler.GREEDY, buckets=(PREFILL, DECODE, MIXED))
    ours.prepare_sharing()
    plans = tuple(mixed_plans(np.random.default_rng(8)))
    recording = Recording(SHAPE, tiny_config().vocab_size, plans)
    outputs, theirs = (replay(runner, recording).outputs for runner in (ours, torch_runner))
    for output, their_output in zip(outputs, theirs, strict=True):
        for array, their_array in zip(output[:3], their_output[:3], strict=True):
            assert array.tolist() == their_array.tolist()
    tokens = tokens_by_sequence(recording, theirs)
    assert [len(tokens[seq_id]) for seq_id in range(4)] == [6, 5, 5, 3]
    prompts = [list(chunk.token_ids) for plan in plans[:2] for chunk in plan.chunks]
    for seq_id, prompt in enumerate((*prompts, prompts[1][:6])):
        alone = generate_alone(prompt, SamplingParams(temperature=0, max_tokens=len(tokens[seq_id])))
        assert tokens[seq_id] == alone.outputs[0].token_ids
    ours.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_other_models_agree_with_transformers(family, tmp_path):
    """jbatch and transformers are held against each other in tests/parity."""
    params = write_checkpoint(tmp_path, tiny(**FAMILIES[family]), seed=5)
    params = {name: torch.from_numpy(array) for name, array in params.items()}
    runner = TorchRunner(parse_config(tiny(**FAMILIES[family])), params, SHAPE, [MIXED, DECODE])
    asked = list(requests(6, count=5))
    items = [WorkItem(tuple(prompt), options.max_tokens, 0.0) for _, prompt, options in asked]
    theirs = hugging_face.Generate(hugging_face.build(tmp_path, params), 2, items).run(items)
    assert [run(runner, 6, count=5)[key][0] for key, _, _ in asked] == theirs


def test_every_parameter_is_used():
    """A tensor that is forgotten, or taken twice, changes no test above where it is zero or one."""
    config = parse_config(tiny(**FAMILIES["qwen3"]))
    params = {name: torch.zeros(leaf.shape) for name, leaf in abstract_params(config).items()}
    llama = build(config, params, torch.zeros(config.head_dim // 2))
    tensors = [llama.embedding, llama.norm, llama.unembedding]
    tensors += [tensor for layer in llama.layers for tensor in layer if tensor is not None]
    pointers = {tensor.data_ptr() for tensor in tensors}
    assert pointers == {tensor.data_ptr() for tensor in params.values()}  # views, no copies


def test_temperature_samples_the_softmax_by_each_seed(torch_runner):
    options = {"temperature": 0.8, "count": 4, "max_tokens": 10}
    first = run(torch_runner, 7, seed=1, **options)
    assert first == run(torch_runner, 7, seed=1, **options)
    assert (
        first
        != run(torch_runner, 7, seed=2, **options)
        != run(torch_runner, 7, **options | {"temperature": 0})
    )

    ids = torch.arange(20_000)
    noise = gumbel(ids, ids * 0, ids * 0 + 5, 4)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    share = torch.bincount((logits + noise).argmax(dim=-1)) / 20_000
    torch.testing.assert_close(share, logits.softmax(dim=-1), atol=0.02, rtol=0)
    assert noise.isfinite().all() and (gumbel(ids, ids * 0 + 1, ids * 0 + 5, 4) != noise).any(dim=-1).all()


def test_what_is_wrong_is_refused(torch_runner):
    packed = padding(DECODE, SHAPE, Sampler.GREEDY)
    with pytest.raises(JBatchError, match="sampler FILTERED: the PyTorch engine has greedy"):
        torch_runner.submit(StepInput(DECODE, Sampler.FILTERED, packed))
    with pytest.raises(KeyError):
        torch_runner.submit(StepInput(decode_bucket(64), Sampler.GREEDY, packed))
    bad = packed.copy()
    unpack(bad, DECODE, SHAPE, Sampler.GREEDY).table_updates[0] = (0, 0, NUM_PAGES)
    with pytest.raises(JBatchError, match=f"page={NUM_PAGES}"):
        torch_runner.submit(StepInput(DECODE, Sampler.GREEDY, bad))
    closed = TorchRunner(tiny_config(), from_jax(tiny_params()), SHAPE, [DECODE])
    closed.close()
    with pytest.raises(JBatchError, match="closed"):
        closed.submit(StepInput(DECODE, Sampler.GREEDY, packed))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fastest", "must be one of auto, gather, triton, flash-attn, flash-attn-3, mosaic"),
        ("triton", "needs an NVIDIA GPU|not installed"),
        ("flash-attn", "needs an NVIDIA GPU|not installed"),
        ("flash-attn-3", "needs an NVIDIA GPU|not installed"),
        ("mosaic", "needs an NVIDIA GPU"),
    ],
)
def test_kernels_that_cannot_run_say_why(name, reason):
    with pytest.raises(ConfigError, match=reason):
        choose(name, tiny_config(), SHAPE, torch.device("cpu"))
    assert choose("auto", tiny_config(), SHAPE, torch.device("cpu"))[0] == "gather"


def test_idle_buckets_change_nothing(torch_runner):
    before = [pages.clone() for pages in torch_runner.memory.state.kv_pages]
    for bucket in (PREFILL, DECODE, MIXED):
        step = StepInput(bucket, Sampler.GREEDY, padding(bucket, SHAPE, Sampler.GREEDY))
        output, _ = torch_runner.collect(torch_runner.submit(step))
        assert not output.tokens.any() and not output.num_tokens.any() and not output.status.any()
    for pages, old in zip(torch_runner.memory.state.kv_pages, before, strict=True):
        torch.testing.assert_close(pages[:NUM_PAGES], old[:NUM_PAGES], rtol=0, atol=0)


def test_options_are_told(torch_runner):
    told = torch_runner.describe()
    assert told["attention"] == "gather" and told["execution"].startswith("eager; prefill: ")
    assert not Options().compile
