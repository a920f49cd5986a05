"""What a call warns of, once: prompts that failed, and texts that were cut off."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from jbatch import shown
from jbatch.engine.prompts import UncheckedRequest
from jbatch.errors import OutputWarning
from jbatch.outputs import FinishReason, RequestOutput

FAILED = "{} of {} failed; first: prompt {}: {}"
CUT_OFF = (
    "more than half of the outputs were cut off by max_tokens or the end of the context (finish_reason "
    "'length')"
)


def warn_of(requests: Sequence[UncheckedRequest], outputs: Sequence[RequestOutput], stacklevel: int) -> None:
    """Warn of the outputs of some requests, in their order. Those that asked for a number of tokens, as with
    `ignore_eos`, are not cut off.

    Args:
      stacklevel: where the caller of this function was called, as `warnings.warn` counts.
    """
    failed = [(idx, output.error) for idx, output in enumerate(outputs) if output.error is not None]
    if failed:
        message = FAILED.format(len(failed), shown.count(len(outputs), "prompt"), *failed[0])
        warnings.warn(message, OutputWarning, stacklevel=stacklevel + 1)
    reasons = [
        completion.finish_reason
        for request, output in zip(requests, outputs, strict=True)
        if output.error is None and request.params.may_end_early
        for completion in output.outputs
    ]
    if 2 * reasons.count(FinishReason.LENGTH) > len(reasons):
        warnings.warn(CUT_OFF, OutputWarning, stacklevel=stacklevel + 1)
