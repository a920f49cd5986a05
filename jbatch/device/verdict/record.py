"""What is known of kernels on a device: each one's outcome."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from pallas_kernels.names import COMPILERS
from pallas_kernels.problem import Kind

Status = Literal["passed", "failed", "declined", "unchecked"]


class Kernel(NamedTuple):
    """A kernel of an op, as `mosaic decode`."""

    name: str  # of its compiler
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name} {self.kind}"


class Outcome(NamedTuple):
    """How the check of a kernel ended."""

    status: Status
    reason: str = ""

    def __str__(self) -> str:
        words = {"failed": "FAILED", "unchecked": "not checked"}.get(self.status, self.status)
        return f"{words}: {self.reason}" if self.reason else words


class Gpu(NamedTuple):
    """A GPU, as the process that checked kernels on it saw it."""

    device_kind: str
    compute_capability: str
    platform: str = "gpu"


class Verdict(NamedTuple):
    """Outcomes of kernels on a GPU, in the order in which they were checked."""

    gpu: Gpu | None  # None: no process came so far as to see one
    outcomes: dict[Kernel, Outcome]

    @property
    def proven(self) -> dict[Kind, str]:
        """The compiler whose kernel passed, by op."""
        return {
            kernel.kind: kernel.name
            for kernel, outcome in self.outcomes.items()
            if outcome.status == "passed"
        }

    @property
    def lasts(self) -> bool:
        """Whether another start would find the same."""
        return self.gpu is not None and all(o.status != "unchecked" for o in self.outcomes.values())

    def describe(self) -> str:
        """One line: what each op uses, and what is wrong with the kernels that it does not."""
        if self.gpu is None:
            reason = next((outcome.reason for outcome in self.outcomes.values()), "nothing to check")
            return f"attention by xla: no kernel could be checked: {reason}"
        parts = []
        for kind in dict.fromkeys(kernel.kind for kernel in self.outcomes):
            others = [
                f"{kernel.name} {outcome}"
                for kernel, outcome in self.outcomes.items()
                if kernel.kind == kind and outcome.status != "passed"
            ]
            use = f"{kind} by {self.proven.get(kind, 'xla')}"
            parts.append(f"{use} ({'; '.join(others)})" if others else use)
        return f"attention on {self.gpu.device_kind}: {', '.join(parts)}"

    def as_json(self) -> dict[str, Any]:
        """What `of_json` reads."""
        return {
            "gpu": None if self.gpu is None else list(self.gpu),
            "kernels": [[*kernel, *outcome] for kernel, outcome in self.outcomes.items()],
        }

    @classmethod
    def of_json(cls, value: Any) -> Verdict:
        """Raises ValueError for what `as_json` did not make."""
        try:
            gpu, rows = value["gpu"], value["kernels"]
            outcomes = {Kernel(*row[:2]): Outcome(*row[2:]) for row in rows}
            verdict = cls(None if gpu is None else Gpu(*gpu), outcomes)
        except (TypeError, KeyError) as error:
            raise ValueError(f"no verdict: {error}") from None
        known = all(
            kernel.name in COMPILERS and kernel.kind in get_args(Kind) and outcome.status in get_args(Status)
            for kernel, outcome in outcomes.items()
        )
        texts = all(isinstance(text, str) for text in (*(gpu or ()), *(o.reason for o in outcomes.values())))
        if not (known and texts):
            raise ValueError(f"no verdict: {value}")
        return verdict
