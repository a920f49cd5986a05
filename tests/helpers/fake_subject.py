"""A ladder's subject without a model: counts are those of any model, since lengths are forced."""

from __future__ import annotations

import dataclasses

from bench.ladder.arms import Arm
from bench.measure.floor import Floor
from jbatch.config import EngineConfig
from jbatch.engine.engine import Engine
from jbatch.host.plan import Status, decode_bucket, prefill_bucket
from jbatch.host.policy import MODES, POLICIES
from jbatch.host.scheduler import Scheduler, SchedulerConfig, StepLimits
from jbatch.sim.fake_runner import BUDGET, FINISHED, FakeRunner


class CountingRunner(FakeRunner):
    """Counts a row's budget and draws a constant token from no cache: thousands of steps per second."""

    def _write(self, row, position, token_id):
        pass

    def _draw(self, slot, row, length, output):
        state = self._rows[row]
        state[BUDGET] -= 1
        state[FINISHED] = state[BUDGET] == 0
        output.status[slot] = Status.OUT_OF_BUDGET if state[FINISHED] else Status.RUNNING
        output.tokens[slot, 0], output.num_tokens[slot] = 3, 1


@dataclasses.dataclass
class FakeSubject:
    """As `bench.ladder.subject.LLMSubject`, with the same buckets."""

    max_num_seqs: int = 16
    page_size: int = 16
    max_model_len: int = 160
    num_pages: int = 1024
    overlap: bool = True
    floor: Floor | None = None
    num_rebuilt: int = 0
    runner: type[FakeRunner] = CountingRunner

    def new_engine(self, arm: Arm, max_num_seqs: int) -> Engine:
        config = EngineConfig(max_num_seqs=self.max_num_seqs, page_size=self.page_size)
        limits = StepLimits(config.max_num_batched_tokens, max_num_seqs)
        sizes = config.token_sizes(self.max_model_len)
        scheduler = Scheduler(
            SchedulerConfig(
                num_rows=self.max_num_seqs,
                num_pages=self.num_pages,
                page_size=self.page_size,
                max_model_len=self.max_model_len,
                decode_buckets=tuple(map(decode_bucket, config.decode_sizes())),
                prefill_buckets=tuple(prefill_bucket(size, self.max_num_seqs) for size in sizes),
                policy=POLICIES[arm.policy],
                admission=MODES[arm.mode],
            ),
            lambda view: limits,
        )
        pages_per_seq = -(-self.max_model_len // self.page_size)
        runner = self.runner(self.max_num_seqs, self.num_pages, self.page_size, pages_per_seq)
        return Engine(scheduler, runner, vocab_size=264, overlap=self.overlap)

    def num_compilations(self) -> int:
        return 0

    def rebuild(self) -> None:
        self.num_rebuilt += 1
