"""From a workload and an aim to an engine's options, and to what they should gain.

Options are searched on one draw of the workload, and their gain is that on another one, by another seed: what
suits a draw by chance gains nothing there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from bench.ladder.arms import Arm
from bench.measure.drive import Run, drive
from bench.simulate.policies import BY_LENGTH
from bench.simulate.subject import Simulated, SimulatedSubject
from bench.tune.aim import Aim, Figures, figures_of
from bench.tune.buckets import TOLERANCE, Sizes, needs_of, worthwhile
from bench.tune.candidate import Candidate, Field
from bench.tune.search import Search, search
from bench.workloads.workload import Workload
from jbatch.errors import ConfigError
from jbatch.host.lengths.find import find_predictor
from jbatch.sim.cost import CostError
from jbatch.sim.load import Load

Draw = Callable[[int], Workload]  # a workload, by a seed


class Tuned(NamedTuple):
    """What came of tuning.

    Attributes:
      found: by the search; its candidates have an engine's own buckets.
      best: the best of it, with those buckets alone that are worth their programs.
      default_held, best_held: their figures on the draw that was held out.
      default_buckets, best_buckets: how many step shapes they compile for each way of sampling.
      predictor: of lengths, where the best goes by them.
    """

    found: Search
    default: Candidate
    best: Candidate
    default_held: Figures
    best_held: Figures
    default_buckets: int
    best_buckets: int
    predictor: str | None

    @property
    def options(self) -> dict[str, object]:
        """For LLM."""
        options: dict[str, object] = self.best.options()
        return options | ({} if self.predictor is None else {"predictor": self.predictor})


def tune(field: Field, draw: Draw, seed: int, aim: Aim, predictor: str | None, time_budget_s: float) -> Tuned:
    """Search, leave out buckets, and simulate the best and the default once more.

    Args:
      predictor: of lengths, as LLM takes it: what policies and admissions go by.

    Raises ConfigError where the default itself cannot run the workload.
    """
    workload, deadline = draw(seed), time.monotonic() + time_budget_s

    def run(candidate: Candidate, workload: Workload, chance: int, loads: list[Load] | None = None) -> Run:
        return simulate_once(field, candidate, workload, predictor, chance, loads)

    def evaluate(candidate: Candidate) -> Figures | None:
        try:
            return figures_of(run(candidate, workload, seed), aim.limits)
        except (ConfigError, CostError):
            if candidate == field.default:
                raise
            return None  # such as a budget that holds no page, or steps without costs

    found = search(evaluate, field.default, field.axes(), aim, lambda: time.monotonic() < deadline)
    best = _trimmed(field, found, aim, lambda candidate, loads: run(candidate, workload, seed, loads))
    held = draw(seed + 1)
    default_held, best_held = (
        figures_of(run(each, held, seed + 1), aim.limits) for each in (field.default, best)
    )
    by_length = best.policy in BY_LENGTH or best.admission == "forecast"
    kept = predictor if by_length else None
    default_buckets, best_buckets = (_sizes(field.simulated(each)).number for each in (field.default, best))
    return Tuned(found, field.default, best, default_held, best_held, default_buckets, best_buckets, kept)


def simulate_once(
    field: Field,
    candidate: Candidate,
    workload: Workload,
    predictor: str | None,
    seed: int,
    loads: list[Load] | None = None,
) -> Run:
    """One pass. No request tells its length: each may have as many tokens as the longest answer."""
    sim = field.simulated(candidate)
    lengths = {number: item.output_len for number, item in enumerate(workload.items)}
    subject = SimulatedSubject(sim, lengths, seed)
    arm = Arm(candidate.policy, "continuous", candidate.policy, candidate.policy)
    engine = subject.new_engine(arm, candidate.max_num_seqs, find_predictor(predictor), loads=loads)
    return drive(
        engine, workload, budget=budget_of(workload, sim.max_model_len, engine.scheduler.max_seq_len)
    )


def budget_of(workload: Workload, max_model_len: int, max_seq_len: int) -> int:
    """`max_tokens` of every request. Raises ConfigError where the longest prompt leaves no room for it."""
    prompt_len = max(len(item.prompt_token_ids) for item in workload.items)
    output_len = max(item.output_len for item in workload.items)
    if prompt_len + output_len > max_seq_len:
        why = (
            f"the longest prompt has {prompt_len} tokens, and every request may have the {output_len} of the "
        )
        why += "longest answer: together they must be at most that"
        name = "max_model_len" if max_seq_len == max_model_len else "num_pages"
        raise ConfigError(name, max_seq_len, why)
    return output_len


def _trimmed(field: Field, found: Search, aim: Aim, run: Callable[[Candidate, list[Load]], Run]) -> Candidate:
    """The best candidate without the buckets that are not worth their programs; as it is where that costs
    more than they seemed to be worth."""
    loads: list[Load] = []
    sim, passed = field.simulated(found.best), run(found.best, loads)
    own = _sizes(sim)
    kept = worthwhile(own, needs_of(passed, loads), sim.costs)
    trimmed = found.best._replace(decode_buckets=kept.decode, token_buckets=kept.tokens)
    figures, default = figures_of(run(trimmed, []), aim.limits), found.tried[field.default]
    enough = aim.value(figures) >= (1 - 2 * TOLERANCE) * aim.value(found.tried[found.best])
    if enough and (aim.allows(figures, default) or found.best == field.default):
        return trimmed
    return found.best._replace(decode_buckets=own.decode, token_buckets=own.tokens)


def _sizes(sim: Simulated) -> Sizes:
    """The buckets of an engine."""
    return Sizes(sim.config.decode_sizes(), sim.config.token_sizes(sim.max_model_len))
