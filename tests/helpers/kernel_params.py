"""Parameters for tests that run with every implementation this machine can run."""

from __future__ import annotations

from typing import Any

import pytest

from pallas_kernels.problem import Kind
from tests.helpers.kernel_points import cover
from tests.helpers.kernels import NAMES, interpreted, uninterpretable


def kernels(*names: str) -> list[Any]:
    """Of (kernel,); those that cannot be interpreted here are skipped, saying why."""
    return [
        _skipped(name) if uninterpretable(name) else pytest.param(interpreted(name), id=name)
        for name in names or NAMES
    ]


def kernels_and_points(kind: Kind) -> list[Any]:
    """Of (kernel, point): each kernel with a cover of what it takes."""
    params = []
    for name in NAMES:
        if uninterpretable(name):
            params.append(_skipped(name, None))
            continue
        kernel = interpreted(name)
        params += [pytest.param(kernel, point, id=f"{name}-{point}") for point in cover(kernel, kind)]
    return params


def _skipped(name: str, *more: None) -> Any:
    return pytest.param(None, *more, id=name, marks=pytest.mark.skip(reason=uninterpretable(name) or ""))
