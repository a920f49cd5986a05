"""A policy of one's own, tried on costs of a data sheet, without a model: python examples/own_policy.py"""

from statistics import mean

from bench.ladder.arms import ARMS
from bench.measure.drive import drive
from bench.measure.measures import request_rows
from bench.simulate.hardware import HARDWARE, derive
from bench.simulate.subject import Simulated, SimulatedSubject
from bench.workloads.workload import make_workload
from jbatch.config import EngineConfig
from jbatch.host.policies import POLICIES
from jbatch.host.policy import Policy
from jbatch.model_dir.shapes import model_config


def short_prompts_first(request, now, view):  # with ageing, so that long ones do not wait for ever
    return (len(request.prompt_token_ids), request.arrival)


def main(num_prompts=256):
    """Print the latency of requests with short and with long prompts, under each policy."""
    model = model_config("llama3-8b", num_layers=32, max_model_len=2048)
    costs = derive(HARDWARE["h200"], model)
    sim = Simulated(EngineConfig(max_num_seqs=16), 2048, 2000, model.vocab_size, costs, {})
    work = make_workload("nano", num_prompts=num_prompts, seed=0, vocab_size=9999, max_model_len=2048)
    mine = Policy(short_prompts_first, rerank_steps=0, ageing=True)
    for name, policy in (("fcfs", POLICIES["fcfs"]), ("mine", mine)):
        engine = SimulatedSubject(sim).new_engine(ARMS["continuous"], 16, policy=policy)
        rows = sorted(request_rows(drive(engine, work)), key=lambda row: row.prompt_len)
        half = len(rows) // 2
        waits = [row.end - row.arrival for row in rows]
        short, long = mean(waits[:half]), mean(waits[half:])
        print(f"{name}: {short:.1f} s for short prompts, {long:.1f} s for long ones")


if __name__ == "__main__":
    main()
