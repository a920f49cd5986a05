"""What is tried: options of an engine, and the engine that they make of measured or derived costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.simulate.subject import Simulated
from jbatch.config import DECODE_SIZES, AdmissionName, EngineConfig, PolicyName
from jbatch.errors import ConfigError
from jbatch.sim.cost import CostTable

# Where costs are derived, which have no end:
LARGEST_SLOTS = 512
SMALLEST_BUDGET, LARGEST_BUDGET = 32, 8192  # prompt tokens of a step


class Candidate(NamedTuple):
    """Options of an engine. Buckets of None are those that an engine has by default."""

    max_num_seqs: int
    max_num_batched_tokens: int
    page_size: int
    policy: PolicyName = "fcfs"
    admission: AdmissionName = "optimistic"
    decode_buckets: tuple[int, ...] | None = None
    token_buckets: tuple[int, ...] | None = None

    def options(self) -> dict[str, Any]:
        """As LLM takes them."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Field(NamedTuple):
    """What may be chosen: engines on costs that hold for them, and all other values.

    Measured costs hold for the engine that they were measured with. What steps with prompts would cost one
    with fewer slots cannot be told from them, so `max_num_seqs` is one of those that were measured.

    The token capacity of the page pool is that of the first engine, whatever the page size: memory decides
    it, and no option.
    """

    engines: Sequence[Simulated]  # on derived costs one for each page size
    policies: Sequence[PolicyName] = ("fcfs",)
    admissions: Sequence[AdmissionName] = ("optimistic",)

    @property
    def default(self) -> Candidate:
        """The defaults of an engine, as far as there are costs for them."""
        page_sizes = [sim.config.page_size for sim in self.engines]
        page_size = EngineConfig.page_size if EngineConfig.page_size in page_sizes else page_sizes[0]
        of_size = [sim for sim in self.engines if sim.config.page_size == page_size]
        slots = _nearest(EngineConfig.max_num_seqs, [size for sim in of_size for size in _slots(sim)])
        engine = next(sim for sim in of_size if slots in _slots(sim))
        budget = _nearest(EngineConfig.max_num_batched_tokens, _budgets(engine))
        return Candidate(slots, budget, page_size)

    def axes(self) -> dict[str, list[Any]]:
        """The values of each option, by its name, in the order in which they are searched."""
        return {
            "max_num_seqs": sorted({size for sim in self.engines for size in _slots(sim)}),
            "max_num_batched_tokens": sorted({size for sim in self.engines for size in _budgets(sim)}),
            "page_size": sorted({sim.config.page_size for sim in self.engines}),
            "policy": list(self.policies),
            "admission": list(self.admissions),
        }

    def simulated(self, candidate: Candidate) -> Simulated:
        """The engine of a candidate. Raises ConfigError for options that do not go together."""
        first = self.engines[0]
        num_pages = 1 + (first.num_pages - 1) * first.config.page_size // candidate.page_size
        for sim in self.engines:
            if candidate.page_size == sim.config.page_size and candidate.max_num_seqs in _slots(sim):
                config = dataclasses.replace(sim.config, **candidate.options())
                return sim._replace(config=config, num_pages=num_pages)
        reason = f"no costs were measured with it and page_size={candidate.page_size}"
        raise ConfigError("max_num_seqs", candidate.max_num_seqs, reason)


def _slots(sim: Simulated) -> Sequence[int]:
    """Values of max_num_seqs that an engine's costs hold for."""
    if isinstance(sim.costs, CostTable):
        return (sim.config.max_num_seqs,)
    above = range(DECODE_SIZES[-1] * 2, LARGEST_SLOTS + 1, DECODE_SIZES[-1])
    return (*DECODE_SIZES, *above)


def _budgets(sim: Simulated) -> Sequence[int]:
    """Prompt tokens of the steps that there are costs of."""
    if isinstance(sim.costs, CostTable):
        return sorted({bucket.tokens for bucket in sim.costs.buckets if bucket.tokens})
    return [SMALLEST_BUDGET << power for power in range(16) if SMALLEST_BUDGET << power <= LARGEST_BUDGET]


def _nearest(default: int, known: Sequence[int]) -> int:
    """The default, or what comes nearest below it of what is known; if all is above it, the least."""
    return max((size for size in known if size <= default), default=min(known))
