"""An engine on a fake device, whose tokens can be worked out by hand."""

from jbatch.host.scheduler import Scheduler
from jbatch.sampling_params import SamplingParams
from jbatch.sim.fake_runner import FakeRunner
from tests.helpers import tiny_engine
from tests.helpers.schedules import VOCAB_SIZE, scheduler_config
from tests.helpers.tiny_engine import drain
from tests.helpers.tokenizers import numbered, wrapped

PROMPT = [1, 2]


TOKENS = [5, 11, 23, 47, 95, 94, 92, 88, 80, 64]  # what follows: sum plus length, modulo 97


def make_engine(mode="continuous", policy="fcfs", tokenizer=True, **options):
    config = scheduler_config(mode, policy, num_rows=options.pop("num_rows", 4))._replace(
        batch_wait_timeout_s=0.02
    )
    runner = FakeRunner(config.shape, VOCAB_SIZE)
    if tokenizer is True:
        tokenizer = wrapped(numbered())
    options = {"vocab_size": VOCAB_SIZE, "tokenizer": tokenizer or None, **options}
    return tiny_engine.make_engine(Scheduler(config), runner, **options)


def generate(params, prompt=PROMPT, **options):
    engine = make_engine(**options)
    engine.add_request("r", prompt, SamplingParams(**params))
    return drain(engine)["r"]
