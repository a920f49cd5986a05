"""Parameters for tests that run with every implementation this machine can run."""

from __future__ import annotations

from typing import Any

import pytest

from pallas_kernels.problem import Kind
from tests.helpers.kernel_points import cover
from tests.helpers.kernels import NAMES, interpreted, uninterpretable
from tests.helpers.sizes import sized

NUM_POINTS = sized(12, None)  # of an op; all hold every pair, the first ones most of them and every value


def kernels(*names: str) -> list[Any]:
    """Of (kernel,); those that cannot be interpreted here are skipped, saying why."""
    return [
        _skipped(name) if uninterpretable(name) else pytest.param(interpreted(name), id=name)
        for name in names or NAMES
    ]


def kernels_and_points(kind: Kind) -> list[Any]:
    """Of (kernel, point): each kernel with the beginning of a cover of what it takes."""
    params = []
    for name in NAMES:
        if uninterpretable(name):
            params.append(_skipped(name, None))
            continue
        kernel = interpreted(name)
        params += [
            pytest.param(kernel, point, id=f"{name}-{point}") for point in cover(kernel, kind)[:NUM_POINTS]
        ]
    return params


def _skipped(name: str, *more: None) -> Any:
    return pytest.param(None, *more, id=name, marks=pytest.mark.skip(reason=uninterpretable(name) or ""))
