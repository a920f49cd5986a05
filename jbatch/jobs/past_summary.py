"""The summary of a job whose last run could not write it: what its results say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from jbatch.jobs.resume import Done, read_raw
from jbatch.jobs.summary import what_is_there


def is_summary_of(path: str, done: Done) -> bool:
    """Whether a summary is of the run that left the output as it is: it counts the same results."""
    try:
        figures = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    expected = what_is_there(done.num_done, done.num_errors)
    return isinstance(figures, dict) and expected.items() <= figures.items()


def figures_of_output(path: str, done: Done) -> dict[str, Any]:
    """Figures of all results of the lines of a job. What only a run knows, its times and steps, is left out.

    Args:
      path: of the output.
      done: what is in it.
    """
    foreign = set(done.foreign)
    reasons, errors, tokens = Counter[str](), Counter[str](), Counter[str]()
    for result, raw in read_raw(path):
        if result.offset in foreign:
            continue
        body = json.loads(raw)
        response = body.get("response")
        answer = response["body"] if isinstance(response, dict) else body
        if result.is_error:
            error = answer.get("error") or body.get("error")
            errors[str(error.get("code") if isinstance(error, dict) else error)] += 1
            continue
        samples = answer.get("choices", answer.get("outputs", [answer]))
        reasons.update(str(sample.get("finish_reason")) for sample in samples)
        reasons.update({"error": len(answer.get("errors", ()))})
        usage = answer.get("usage", {})
        tokens.update({name: usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")})
    return {
        "from_results": True,
        "completed": done.num_done - done.num_errors,
        "failed": done.num_errors,
        "finish_reasons": dict(+reasons),
        "errors": dict(errors),
        "total_input_tokens": tokens["prompt_tokens"],
        "total_output_tokens": tokens["completion_tokens"],
        **what_is_there(done.num_done, done.num_errors),
    }
