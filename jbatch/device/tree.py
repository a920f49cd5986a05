"""A tree of weights, in whatever form a trainer has it, as arrays by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flax import nnx

import weights
from jbatch.config import ModelConfig
from jbatch.device.model import abstract_params
from jbatch.errors import ConfigError

FORMS = "an nnx module or state, or a dictionary of arrays by these or by Hugging Face's names"


def sources_of(tree: Any, config: ModelConfig) -> dict[str, weights.Source]:
    """What each parameter of a model is made of.

    Raises:
      ConfigError: for what is no tree.
      weights.WeightsError: naming what is missing, unexpected, or does not fit.
    """
    return weights.match(named_arrays(tree), abstract_params(config))


def named_arrays(tree: Any) -> dict[str, Any]:
    """Arrays by name, 'layers.3.attention.qkv': the keys on the way to each, joined.

    Args:
      tree: an nnx module, whose nnx.Param count; an nnx state; or mappings and lists, nested or not.

    Raises:
      ConfigError: for what is none of these.
    """
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree, nnx.Param)
    if not isinstance(tree, Mapping):
        raise ConfigError("tree", type(tree).__name__, f"must be {FORMS}")
    return dict(_leaves(tree, ""))


def _leaves(tree: Any, name: str) -> Iterable[tuple[str, Any]]:
    items: Iterable[tuple[Any, Any]]
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        yield name, tree.get_value() if isinstance(tree, nnx.Variable) else tree
        return
    for key, value in items:
        yield from _leaves(value, f"{name}.{key}" if name else str(key))
