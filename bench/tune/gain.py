"""What tuned options gain on the machine itself: engines with and without them, in turn.

    python -m bench.tune.gain TUNED [--model demo|150m|DIR] [--repeats N]

Both run the draw of the workload that `jbatch tune` predicted the gain for and did not search on. What was
measured while the machine was slow is measured again. Here each request says how long its answer will be, as
`max_tokens`; in the search none does. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from bench.ladder.arms import ARMS
from bench.ladder.subject import LLMSubject, find_model
from bench.measure.drive import drive
from bench.measure.models import DEMO
from bench.simulate.calibrate import calm_of
from bench.tune.aim import Figures, figures_of
from bench.workloads.workload import Workload, make_workload
from jbatch.cli.tables import Page, Table
from jbatch.config import EngineConfig, ModelConfig
from jbatch.model_dir.config_json import load_config
from jbatch.model_dir.tuned import Tuned, read_tuned

CONTINUOUS = ARMS["continuous"]
DEFAULT, TUNED = "default", "tuned"
SHOWN = {
    "output_throughput": "tokens/s",
    "p99_ttft": "TTFT p99, ms",
    "p99_itl": "ITL p99, ms",
    "mean_e2el": "mean E2EL, ms",
}


class Gain(NamedTuple):
    """One figure of both engines."""

    figure: str
    predicted: tuple[float, float]  # of the default and of the tuned one
    measured: tuple[float, float]  # medians of the repeats
    ratios: tuple[float, ...]  # tuned over default, of each repeat

    @property
    def predicted_ratio(self) -> float:
        """Tuned over default."""
        default, tuned = self.predicted
        return tuned / max(default, 1e-9)


def held_out(tuned: Tuned, model: ModelConfig) -> Workload:
    """The draw that a gain was predicted for. Raises what `make_workload` raises."""
    said = tuned.about["workload"]
    return make_workload(
        said["name"],
        num_prompts=said["num_prompts"],
        seed=said["seed"] + 1,
        vocab_size=model.vocab_size,
        max_model_len=model.max_context_len,
        **{name: value for name, value in said["scales"].items() if name != "capped"},
    )


def run_gain(path: str, model: str, repeats: int) -> list[Gain]:
    """Measure. Raises what LLM and `held_out` raise."""
    config = load_config(find_model(model)[0])
    tuned = read_tuned(path)
    workload = held_out(tuned, config)
    options: dict[str, dict[str, Any]] = {
        DEFAULT: {"max_num_seqs": EngineConfig.max_num_seqs, "samplers": ("greedy",)},
        TUNED: {"tuned": path, "samplers": ("greedy",)},
    }
    subjects = {
        name: LLMSubject(model, config.max_context_len, own, measure_floor=False)
        for name, own in options.items()
    }
    try:
        calm = calm_of(subjects[DEFAULT])
        measured: dict[str, list[Figures]] = {name: [] for name in subjects}
        for _ in range(repeats):
            for name, subject in subjects.items():
                measured[name].append(calm.run(partial(figures_once, subject, workload)))
        Page().print(str(calm))
    finally:
        for subject in subjects.values():
            subject.close()
    return compare(tuned.about["predicted"], measured)


def figures_once(subject: LLMSubject, workload: Workload) -> Figures:
    """Of one pass, with the policy of the engine's options."""
    arm = CONTINUOUS._replace(policy=subject.policy)
    return figures_of(drive(subject.new_engine(arm, subject.max_num_seqs), workload), {})


def compare(
    predicted: Mapping[str, Mapping[str, float]], measured: Mapping[str, Sequence[Figures]]
) -> list[Gain]:
    """The figures that are shown, each predicted and measured."""
    made = []
    for figure in SHOWN:
        default, tuned = ([getattr(each, figure) for each in measured[name]] for name in (DEFAULT, TUNED))
        ratios = tuple(ours / max(theirs, 1e-9) for ours, theirs in zip(tuned, default, strict=True))
        medians = statistics.median(default), statistics.median(tuned)
        made.append(Gain(figure, (predicted[DEFAULT][figure], predicted[TUNED][figure]), medians, ratios))
    return made


def gain_table(gains: Sequence[Gain]) -> Table:
    """Each figure measured, with the least and the most of the pairs' ratios, and predicted."""
    headings = ("figure", "how", "default", "tuned", "tuned / default", "from", "to")
    rows = []
    for each in gains:
        ratios = (statistics.median(each.ratios), min(each.ratios), max(each.ratios))
        measured, predicted = ([f"{value:.4g}" for value in pair] for pair in (each.measured, each.predicted))
        rows.append((SHOWN[each.figure], "measured", *measured, *(f"{ratio:.2f}" for ratio in ratios)))
        rows.append(("", "predicted", *predicted, f"{each.predicted_ratio:.2f}", "", ""))
    return Table(headings, rows, num_names=2)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tuned", metavar="TUNED", help="a file of jbatch tune")
    parser.add_argument("--model", default=DEMO, help="demo, 150m (random weights), or a model directory")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    Page().show(gain_table(run_gain(args.tuned, args.model, args.repeats)))


if __name__ == "__main__":
    main()
