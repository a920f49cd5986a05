"""What a prefix cache saves, counted on a runner without a model."""

from types import SimpleNamespace

from bench.ladder.prefix import PASSES, measure
from bench.options import Setting
from bench.workloads.workload import make_workload
from jbatch.config import EngineConfig
from jbatch.host.scheduler import Scheduler
from tests.helpers.fake_subject import FakeSubject


class Subject(FakeSubject):
    """With the cache on or off, as its model's options say."""

    def __init__(self):
        super().__init__(max_num_seqs=4, max_model_len=512)
        self.llm = SimpleNamespace(config=EngineConfig(max_num_seqs=4))

    def new_engine(self, arm, max_num_seqs):
        engine = super().new_engine(arm, max_num_seqs)
        caching = self.llm.config.enable_prefix_caching
        config = engine.scheduler.config._replace(enable_prefix_caching=caching)
        engine.pipeline.scheduler = Scheduler(config, engine.scheduler.limits)
        return engine


def few_shot():
    return make_workload(
        "few-shot", num_prompts=24, seed=0, vocab_size=264, max_model_len=512, num_prefixes=2
    )


def test_examples_are_computed_once_and_a_repeat_is_apart():
    workload = few_shot()
    made = measure(Subject(), workload, Setting(repeats=2))
    assert made.keys() == PASSES.keys() and all(len(passes) == 2 for passes in made.values())
    off, cold, warm = (passes[0] for passes in made.values())
    assert off.prefill_tokens == workload.num_prompt_tokens and off.hit_rate == 0
    own = workload.num_prompt_tokens - 24 * 320
    assert own < cold.prefill_tokens < 0.5 * off.prefill_tokens
    assert warm.prefill_tokens < cold.prefill_tokens / 3 and warm.hit_rate > cold.hit_rate > 0.5
    assert made["cold"][1].prefill_tokens == cold.prefill_tokens  # a fresh engine: nothing was left


def test_the_workload_shares_its_examples():
    items = few_shot().items
    assert len({item.prompt_token_ids[:320] for item in items}) == 2
    assert len({item.prompt_token_ids for item in items}) == 24
    assert {len(item.prompt_token_ids) - 320 for item in items} <= set(range(20, 61))
