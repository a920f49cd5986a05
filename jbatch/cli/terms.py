"""What the words in headings mean, a line each: one word for one thing, wherever it is printed."""

from __future__ import annotations

import re
from collections.abc import Iterable

MEANINGS = {
    "steps": "dispatches to the device",
    "decode steps": "steps in which running requests draw a token each",
    "prefill steps": "steps that read prompts; one that also decodes counts as both",
    "slot-steps": "one is one slot of one step: room for one token",
    "slot use": "of the slot-steps, those that gave a token",
    "padding": "of the places for prompt tokens, those that stayed empty",
    "tokens/s": "output tokens per second in which something was unfinished",
    "spread": "(most - least) / median of the repeats' tokens/s",
    "TTFT": "time to first token: from a request's arrival to its first token",
    "TPOT": "time per output token: of one request, the mean after its first token",
    "ITL": "inter-token latency: from one token of a request to its next",
    "E2EL": "end-to-end latency: from a request's arrival to its last token",
    "goodput": "requests per second that keep every limit",
    "idle": "time in which nothing was unfinished; it is left out of rates",
    "device busy": "of the time, how long the device worked",
    "of floor": "of the time, what the useful work takes at the device's own rates",
    "makespan": "from the first arrival to the last token",
    "preempted": "times that a request gave up its pages, to be computed again later",
    "recomputed": "tokens that were computed again after their pages were given up",
    "limits kept": "of the requests with a limit of their latency, how many kept it",
    "fairness": "1 where users got equal shares while they waited (Jain's index)",
    "regret": "mean E2EL above that of the same policy with an oracle of lengths",
    "cached": "of the prompts' tokens, those found in the prefix cache",
    "of ideal": "of one engine's tokens/s times the speeds of all",
    "imbalance": "the busiest engine's time over the mean of all",
    "fill": "part of E2EL: waiting for a full batch",
    "queue": "part of E2EL: then until the first chunk of the prompt is planned",
    "prefill": "part of E2EL: then until the first token",
    "decode": "part of E2EL: from the first token to the last",
}
_TERMS = re.compile(
    rf"(?<![\w-])({'|'.join(map(re.escape, sorted(MEANINGS, key=len, reverse=True)))})(?![\w-])"
)


def terms_in(texts: Iterable[str]) -> list[str]:
    """The terms that stand in some texts, in the order in which they come first."""
    return list(dict.fromkeys(match[0] for text in texts for match in _TERMS.finditer(text)))
