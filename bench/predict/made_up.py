"""Two jobs that are made up, for predictors of lengths to be tried on.

    python -m bench.predict.made_up tasks|memoryless DIR [--num-prompts N] [--samples N] [--seed N]

`tasks`: what a prompt asks for says how long its answers are, give or take. `memoryless`: no prompt says
anything, and each token may be the last one. DIR gets in.jsonl and out.jsonl, as of a job with `n` samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.options import MAX_COUNT
from jbatch.config import check_range
from jbatch.errors import ConfigError, describe_os_error

TASKS = {  # what is asked of a text, and the median answer's tokens
    "Label this review in one word: {}": 4,
    "Translate to French: {}": 60,
    "Summarise briefly: {}": 90,
    "Explain step by step why {}": 260,
    "Write a detailed essay on {}": 700,
}
SPREAD = 0.35  # of the logarithm: half to twice the median are 95 % of a prompt's answers
MEAN = 200  # tokens of an answer that nothing is known of
MAX_TOKENS = 2048


def answers(kind: str, num_prompts: int, num_samples: int, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Prompts, and the lengths of each one's answers."""
    rng, tasks = np.random.default_rng(seed), list(TASKS.items())
    for _ in range(num_prompts):
        task, median = tasks[rng.integers(len(tasks))]
        prompt = task.format(" ".join(f"word{idx}" for idx in rng.integers(5000, size=rng.integers(5, 120))))
        if kind == "tasks":
            own = median * np.exp(rng.normal(0, SPREAD))  # a text of its own
            lengths = own * np.exp(rng.normal(0, SPREAD, num_samples))
        else:
            lengths = rng.geometric(1 / MEAN, num_samples)
        yield prompt, np.clip(lengths, 1, MAX_TOKENS).astype(int).tolist()


def write_job(folder: Path, kind: str, num_prompts: int, num_samples: int, seed: int) -> None:
    """Write the job's two files. Raises OSError, also where they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "in.jsonl").open("x") as lines, (folder / "out.jsonl").open("x") as results:
        for number, (prompt, lengths) in enumerate(answers(kind, num_prompts, num_samples, seed)):
            line = {"prompt": prompt, "max_tokens": MAX_TOKENS, "n": num_samples, "custom_id": str(number)}
            usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": sum(lengths)}
            outputs = [{"token_ids": [0] * length} for length in lengths]
            lines.write(json.dumps(line) + "\n")
            results.write(json.dumps({"custom_id": str(number), "outputs": outputs, "usage": usage}) + "\n")


def main(args: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("tasks", "memoryless"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--num-prompts", type=int, default=1000)
    parser.add_argument("--samples", dest="num_samples", type=int, default=4, help="answers of each prompt")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(args)
    try:
        check_range("num_prompts", chosen.num_prompts, 1, MAX_COUNT)
        check_range("samples", chosen.num_samples, 1, MAX_COUNT)
        check_range("seed", chosen.seed, 0, 2**32 - 1)
        write_job(**vars(chosen))
    except ConfigError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(describe_os_error(error))


if __name__ == "__main__":
    main()
