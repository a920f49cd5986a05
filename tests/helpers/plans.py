"""Small scenarios by hand: what a scheduler plans, in a line for each step."""

import numpy as np

from jbatch.seam.step_output import StepOutput, num_draws
from tests.helpers.schedules import request, scheduler_config


def show(plan):
    """ "prefill 32: a[0:5]! b[0:16]" (! draws), "decode 2: a (b)" ((b) is frozen), "mixed 32: a b[0:16]"."""
    names = ["abcdefgh"[seq_id] for seq_id in plan.seq_ids]
    frozen = plan.frozen or [False] * len(names)
    slots = [f"({name})" if held else name for name, held in zip(names, frozen, strict=True)]
    if not plan.chunks:
        return f"decode {plan.bucket.slots}: {' '.join(slots)}"
    chunks = [f"{'abcdefgh'[c.seq_id]}[{c.start}:{c.end}]{'!' if c.draws else ''}" for c in plan.chunks]
    return f"{'mixed' if names else 'prefill'} {plan.bucket.tokens}: {' '.join(slots + chunks)}"


def plans_until_idle(driver):
    shown = []
    while driver.scheduler.has_unfinished or driver.in_flight:
        plan = driver.step()
        if plan is not None:
            shown.append(show(plan))
    driver.check_end()
    return shown


def uncached(**changes):
    """What is computed again is not found."""
    return scheduler_config(enable_prefix_caching=False, **changes)


def submit(driver, prompt_len, max_tokens, **fields):
    return driver.submit(request(range(1, prompt_len + 1), max_tokens, **fields))


def lines(table):
    return [line.strip() for line in table.strip().splitlines()]


def came_back(scheduler, plan, *results, statuses=()):
    """Of each draw, in order: its tokens. All go on, where nothing else is said."""
    draws = num_draws(plan.bucket, scheduler.config.shape)
    output = StepOutput(np.zeros((draws, 1), int), np.zeros(draws, int), np.zeros(draws, int))
    places = [*range(len(plan.seq_ids)), *range(plan.bucket.slots, draws)]
    for place, tokens in zip(places, results, strict=False):
        output.tokens[place, : len(tokens)], output.num_tokens[place] = tokens, len(tokens)
    for place, status in zip(places, statuses, strict=False):
        output.status[place] = status
    return scheduler.apply(plan, output)
