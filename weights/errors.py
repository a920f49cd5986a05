"""The one error of this package."""

from __future__ import annotations

from collections.abc import Sequence


class WeightsError(Exception):
    """Weights that cannot be trusted or do not fit; the message names the file or tensor."""


def raise_if_any(where: object, problems: Sequence[str], limit: int = 8) -> None:
    """Raise one WeightsError for all problems: the first few in words, the rest as a count."""
    if problems:
        rest = [f"and {len(problems) - limit} more"] if len(problems) > limit else []
        raise WeightsError(f"{where}: " + "; ".join([*problems[:limit], *rest]))
