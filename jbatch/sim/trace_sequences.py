"""The sequences of a trace, with tokens made up: the same ones where pages held the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jbatch.engine.trace import draws_of
from jbatch.host.plan import StepPlan
from jbatch.host.request import LatencyLimits, Request, Sequence
from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import Status, StepOutput, num_draws
from jbatch.sim.trace_file import Line, Trace, followed

MAX_TOKEN = 2**31 - 1


class TraceSequences:
    """What a trace says of its sequences."""

    def __init__(self, trace: Trace):
        self.size = int(trace.config["shape"]["page_size"])
        self._pages: dict[int, list[int]] = {}  # by seq_id, a token for each full page
        self._tokens: dict[int, int] = {}  # by hash
        self._families: dict[int, list[Sequence]] = {}
        for line in trace.lines:
            with followed(trace, line):
                self._note(line)

    def _note(self, line: Line) -> None:
        """Keep what its pages hold."""
        if line.kind == "add":
            added = line.value["add"]
            self._pages[added["seq"]] = [self._token(page) for page in added["pages"]]
        elif line.kind == "result":
            for seq_id, page in line.value["result"]["pages"]:
                self._pages[seq_id].append(self._token(page))

    def _token(self, page: int) -> int:
        return self._tokens.setdefault(page, len(self._tokens))

    def token(self, seq_id: int, position: int) -> int:
        """A token for a position: two sequences have the same ones in pages that are the same."""
        pages, page = self._pages[seq_id], position // self.size
        return pages[page] if page < len(pages) else MAX_TOKEN - seq_id

    def add(self, scheduler: Scheduler, fields: dict[str, Any], *, keyed: bool) -> Sequence:
        """Queue a sequence; by the key that it had, or by the policy's."""
        family = self._families.setdefault(fields["first"], [])
        request = self._request(fields)
        return scheduler.add(request, tuple(fields["key"]) if keyed else None, family)

    def _request(self, fields: dict[str, Any]) -> Request:
        quantiles = fields["length_quantiles"]
        params = SamplingParams(
            max_tokens=fields["max_tokens"],
            prompt_logprobs=0 if fields["scored"] else None,
            skip_reading_prefix_cache=fields["skips_cache"] or None,
        )
        return Request(
            request_id=str(fields["first"]),
            prompt_token_ids=tuple(self.token(fields["seq"], pos) for pos in range(fields["prompt_len"])),
            params=params,
            max_tokens=fields["max_tokens"],
            stop_ids=(),
            seed=0,
            arrival=fields["arrival"],
            priority=fields["priority"],
            deadline=fields["deadline"],
            predicted_len=fields["predicted_len"],
            length_quantiles=None if quantiles is None else tuple(quantiles),
            user=fields["user"],
            limits=LatencyLimits(*fields["limits"]),
            sample_idx=fields["sample"],
            first_scored=fields["first_scored"],
            streamed=fields["watched"],
        )

    def output(
        self,
        plan: StepPlan,
        known: Mapping[int, Sequence],
        ends: Mapping[int, tuple[int, int]],
        shape: StateShape,
    ) -> StepOutput:
        """A step's output. `ends` has tokens and status of the places that gave less, or a last one."""
        draws = num_draws(plan.bucket, shape)
        tokens = np.zeros((draws, plan.bucket.steps), np.int32)
        counts, statuses = np.zeros(draws, np.int32), np.zeros(draws, np.int32)
        for place, seq_id in draws_of(plan):
            counts[place], statuses[place] = ends.get(place, (plan.bucket.steps, Status.RUNNING))
            begin = known[seq_id].num_known
            tokens[place] = [self.token(seq_id, begin + step) for step in range(plan.bucket.steps)]
        return StepOutput(tokens, counts, statuses)
