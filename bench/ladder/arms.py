"""The arms of the ladder: admission rules of one engine, and what each is called and means."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bench.workloads.workload import Workload
from jbatch.config import ModeName, PolicyName
from jbatch.errors import ConfigError

NOISE_SIGMA = 0.5  # of the predictor's error, in the logarithm: most predictions are within a factor of 1.65
NOISE_STREAM = 17  # of the seed


class Arm(NamedTuple):
    """A way to batch."""

    name: str
    mode: ModeName
    definition: str
    policy: PolicyName = "fcfs"
    noisy: bool = False  # lengths come from a predictor, not from the workload


ARMS = {
    arm.name: arm
    for arm in (
        Arm("unbatched", "unbatched", "one request at a time"),
        Arm(
            "static",
            "static",
            "a batch starts when the one before has ended; rows that end leave it, none joins (no refill)",
        ),
        Arm(
            "static-full",
            "static-full",
            "as static, but a batch waits until it is full, or until its oldest request has waited for "
            "batch_wait_timeout_s; where all requests are there from the beginning it is static",
        ),
        Arm(
            "static-padded",
            "static-padded",
            "as static, but every row is computed until the batch's longest has ended, as `generate` does "
            "elsewhere; prompts are packed, not left-padded, and each request is credited at its own last "
            "token, which is kinder than elsewhere",
        ),
        Arm(
            "static-sorted",
            "static",
            "as static, over batches of like lengths: sorted by true output length, shortest first (oracle)",
            "sjf",
        ),
        Arm(
            "static-sorted-predicted",
            "static",
            "as static-sorted, by predicted output length: the true one times a lognormal error of sigma "
            f"{NOISE_SIGMA} (a noisy predictor)",
            "sjf",
            noisy=True,
        ),
        Arm("continuous", "continuous", "a row is filled again as soon as its request has ended"),
        Arm(
            "continuous-sorted",
            "continuous",
            "as continuous, longest first by true output length, for a short tail (oracle)",
            "ljf",
        ),
        Arm(
            "continuous-predicted",
            "continuous",
            "as continuous-sorted, by the lengths that static-sorted-predicted goes by",
            "ljf",
            noisy=True,
        ),
    )
}
STATIC = tuple(name for name, arm in ARMS.items() if arm.mode.startswith("static"))


def choose_arms(names: list[str] | None) -> list[Arm]:
    """The arms of these names, in the ladder's order; all where none is named. Raises ConfigError for an
    unknown name."""
    for name in names or ():
        if name not in ARMS:
            raise ConfigError("arms", name, f"must be one of {', '.join(ARMS)}")
    return [arm for name, arm in ARMS.items() if not names or name in names]


def predicted_lens(arm: Arm, workload: Workload) -> list[int] | None:
    """The output lengths that an arm's policy sorts by, which are at least 1; None where it does not sort."""
    if arm.policy == "fcfs":
        return None
    lens = np.array([item.output_len for item in workload.items])
    if arm.noisy:
        rng = np.random.default_rng([workload.seed, NOISE_STREAM])
        lens = np.maximum(1, np.rint(lens * rng.lognormal(0.0, NOISE_SIGMA, len(lens)))).astype(int)
    return lens.tolist()
