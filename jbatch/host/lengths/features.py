"""Cheap features of a prompt. What a request does not have, such as a text, is NaN."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from jbatch.host.request import Request

WORDS = {  # that say what kind of answer is wanted
    "short": ("short", "brief", "briefly", "concise", "one word", "yes or no", "classify", "label"),
    "long": ("essay", "story", "detailed", "in detail", "long", "comprehensive", "report", "article"),
    "list": ("list", "steps", "step by step", "examples", "enumerate", "bullet"),
    "explain": ("explain", "why", "how", "describe", "compare", "discuss"),
    "rewrite": ("translate", "rewrite", "summarize", "summarise", "correct", "extract", "paraphrase"),
    "code": ("code", "function", "python", "implement", "script", "json", "sql", "html"),
}
TEXT_FEATURES = ("num_chars", "num_words", "num_lines", "digits", "question", "fence", *WORDS)
FEATURES = ("log_prompt_len", "log_max_tokens", *TEXT_FEATURES)


def features(request: Request) -> Float[np.ndarray, " features"]:
    """Of a request, in the order of FEATURES."""
    sizes = math.log(len(request.prompt_token_ids)), math.log(max(1, request.max_tokens))
    return np.array((*sizes, *_text_features(request.prompt)))


def _text_features(text: str | None) -> tuple[float, ...]:
    if text is None:
        return (math.nan,) * len(TEXT_FEATURES)
    lower, num_chars = text.lower(), len(text)
    return (
        math.log1p(num_chars),
        math.log1p(text.count(" ")),
        math.log1p(text.count("\n")),
        sum(map(str.isdigit, text[:4096])) / max(1, min(num_chars, 4096)),
        float(text.rstrip().endswith("?")),
        float("```" in text),
        *(float(any(word in lower for word in words)) for words in WORDS.values()),
    )
