"""Engines of other modes, policies, limits and runners on one LLM."""

import dataclasses

import pytest

from jbatch.engine.engine import Engine
from jbatch.errors import ConfigError
from jbatch.host.limits import StepLimits
from jbatch.host.policy import MODES
from tests.helpers.small_llm import GREEDY, ids_of

# Engines.


def test_modes_and_overlap_give_the_same_tokens(llm):
    prompts = [[idx, idx + 1] * (1 + idx) for idx in range(9)]
    expected = ids_of(llm.generate(prompts, GREEDY))
    default = llm.engine
    try:
        for mode in MODES:
            llm.engine = llm.new_engine(mode=mode)
            assert ids_of(llm.generate(prompts, GREEDY)) == expected
            assert llm.engine.summary.output_tokens == sum(map(len, expected))
        engine = llm.new_engine()
        llm.engine = Engine(engine.scheduler, llm.runner, engine.intake, overlap=False)
        assert ids_of(llm.generate(prompts, GREEDY)) == expected
    finally:
        llm.engine = default


def test_the_token_budget_holds_where_the_buckets_are_larger(llm):
    plans = []
    llm.config = dataclasses.replace(llm.config, max_num_batched_tokens=16)
    engine = llm.new_engine()
    engine.add_request("long", [7] * 40, GREEDY)
    while engine.has_unfinished:
        plans.append(engine.step().plan)
    llm.config = dataclasses.replace(llm.config, max_num_batched_tokens=2048)
    assert [len(plan.chunks[0].token_ids) for plan in plans if plan and plan.chunks] == [16, 16, 8]


def test_a_policy_and_limits_of_the_users_own(llm):
    def most_last_token(request, now, view):
        return (-request.prompt_token_ids[-1],)

    engine = llm.new_engine(policy=most_last_token, limits=lambda view: StepLimits(64, 1))
    for last in (3, 9, 6):
        engine.add_request(str(last), [5, last], GREEDY)
    ended = []
    while engine.has_unfinished:
        ended += [output.request_id for output in engine.step().outputs]
    assert ended == ["9", "6", "3"]


@pytest.mark.parametrize("policy", ["shortest", 3, ""])
def test_a_policy_that_is_none_is_named(llm, policy):
    with pytest.raises(ConfigError, match=f"^policy={policy!r}: must be one of fcfs, "):
        llm.new_engine(policy=policy)


def test_a_runner_of_the_users_own_sees_every_step(llm):
    class Watching:
        """Passes everything on, and keeps what it saw."""

        def __init__(self, runner):
            self.runner, self.steps = runner, []

        def __getattr__(self, name):
            return getattr(self.runner, name)

        def submit(self, step):
            self.steps.append(step.bucket)
            return self.runner.submit(step)

    watching = Watching(llm.runner)
    engine = llm.new_engine(runner=watching)
    engine.add_request("watched", [5, 6], GREEDY)
    plans, outputs = [], []
    while engine.has_unfinished:
        step = engine.step()
        plans += [step.plan] if step.plan is not None else []
        outputs += step.outputs
    assert watching.steps == [plan.bucket for plan in plans]
    assert [outputs[0].outputs[0].token_ids] == ids_of(llm.generate([[5, 6]], GREEDY))
    assert llm.new_engine().runner is llm.runner
