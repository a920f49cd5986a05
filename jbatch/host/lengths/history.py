"""The lengths of what has ended: what is known of a job while it runs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

RECENT = 4096  # requests that are kept
REFRESH = 0.05  # share of them that must be new before quantiles are worked out again


class History:
    """Prompt and output lengths of requests that ended, the last `RECENT` of them."""

    def __init__(self) -> None:
        self._lengths = np.zeros((RECENT, 2))
        self._count = 0
        self._sum = 0.0
        self._sorted: dict[str, Float[np.ndarray, " n"]] = {}
        self._sorted_at = 0  # the count then

    def __len__(self) -> int:
        return self._count

    @property
    def mean(self) -> float:
        """Of all output lengths; 0 before there are any."""
        return self._sum / max(1, self._count)

    def add(self, prompt_len: int, output_len: int) -> None:
        """One has ended."""
        self._lengths[self._count % RECENT] = prompt_len, output_len
        self._count += 1
        self._sum += output_len

    def quantiles(self, levels: tuple[float, ...]) -> Float[np.ndarray, " levels"]:
        """Of the output lengths. There must be some."""
        return np.quantile(self._ordered()["lengths"], levels)

    def ratios(self, levels: tuple[float, ...]) -> Float[np.ndarray, " levels"]:
        """Quantiles of output over prompt length. There must be some."""
        return np.quantile(self._ordered()["ratios"], levels)

    def _ordered(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Sorted once for many requests: not quite the newest."""
        if not self._sorted or self._count - self._sorted_at > REFRESH * min(self._count, RECENT):
            known = self._lengths[: min(self._count, RECENT)]
            self._sorted = {
                "lengths": np.sort(known[:, 1]),
                "ratios": np.sort(known[:, 1] / np.maximum(known[:, 0], 1)),
            }
            self._sorted_at = self._count
        return self._sorted
