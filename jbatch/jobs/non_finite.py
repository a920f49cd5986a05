"""A model that gives nothing but logits that are not finite: it has overflowed, or its weights are broken."""

from __future__ import annotations

from jbatch.errors import JobError
from jbatch.host.landing import NON_FINITE
from jbatch.outputs import RequestOutput

MAX_NON_FINITE = 100  # requests: where all of so many fail, the others would, too


class NonFiniteWatch:
    """Looks at the first requests of a job."""

    def __init__(self) -> None:
        self._num_non_finite: int | None = 0  # requests; None once one did not end so

    def see(self, output: RequestOutput) -> None:
        """Take in a request that has ended. Raises JobError where all of the first ones ended so."""
        if self._num_non_finite is None:
            return
        if not all(NON_FINITE in (sample.error or "") for sample in output.outputs):
            self._num_non_finite = None
            return
        self._num_non_finite += 1
        if self._num_non_finite == MAX_NON_FINITE:
            raise JobError(
                f"all of the first {MAX_NON_FINITE} requests ended with logits that are not finite. A "
                "float16 model may overflow: try --dtype bfloat16, with --force --retry-errors"
            )
