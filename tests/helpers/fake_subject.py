"""A ladder's subject without a model: counts are those of any model, since lengths are forced."""

from __future__ import annotations

import dataclasses

from bench.ladder.arms import Arm
from bench.measure.floor import Floor
from jbatch.config import EngineConfig
from jbatch.engine.engine import Engine
from jbatch.engine.intake import Intake
from jbatch.host.config import SchedulerConfig
from jbatch.host.limits import StepLimits
from jbatch.host.policies import POLICIES
from jbatch.host.policy import MODES
from jbatch.host.scheduler import Scheduler
from jbatch.seam.bucket import buckets_of
from jbatch.seam.rows import COLUMNS
from jbatch.seam.shape import StateShape
from jbatch.seam.step_output import Status
from jbatch.sim.fake_runner import FakeRunner


class CountingRunner(FakeRunner):
    """Counts a row's budget and draws a constant token from no cache: thousands of steps per second."""

    def _write(self, row, position, token_id):
        pass

    def _context(self, row, length):
        return ()

    def _draw(self, idx, row, context, output):
        state = self._rows[row]
        state[COLUMNS["budget"]] -= 1
        state[COLUMNS["finished"]] = state[COLUMNS["budget"]] == 0
        output.status[idx] = Status.OUT_OF_BUDGET if state[COLUMNS["finished"]] else Status.RUNNING
        output.tokens[idx, output.num_tokens[idx]] = 3
        output.num_tokens[idx] += 1


@dataclasses.dataclass
class FakeSubject:
    """As `bench.ladder.subject.LLMSubject`, with the same buckets."""

    max_num_seqs: int = 16
    page_size: int = 16
    max_model_len: int = 160
    num_pages: int = 1024
    batch_wait_timeout_s: float = 0.02
    overlap: bool = True
    floor: Floor | None = None
    num_rebuilt: int = 0
    runner: type[FakeRunner] = CountingRunner

    def new_engine(self, arm: Arm, max_num_seqs: int) -> Engine:
        config = EngineConfig(mode=arm.mode, max_num_seqs=self.max_num_seqs, page_size=self.page_size)
        limits = StepLimits(config.max_num_batched_tokens, max_num_seqs)
        pages_per_seq = -(-self.max_model_len // self.page_size)
        shape = StateShape(self.max_num_seqs, self.num_pages, self.page_size, pages_per_seq)
        scheduler = Scheduler(
            SchedulerConfig(
                shape=shape,
                max_model_len=self.max_model_len,
                buckets=buckets_of(config, self.max_model_len),
                policy=POLICIES[arm.policy],
                admission=MODES[arm.mode],
                batch_wait_timeout_s=self.batch_wait_timeout_s,
            ),
            lambda view: limits,
        )
        desk = Intake(vocab_size=264, max_seq_len=scheduler.max_seq_len)
        return Engine(scheduler, self.runner(shape), desk, overlap=self.overlap)

    def num_compilations(self) -> int:
        return 0

    def rebuild(self) -> None:
        self.num_rebuilt += 1
