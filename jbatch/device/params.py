"""A model's parameters on the device: read by every step, and replaced one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

import weights
from jbatch.device import sharding
from jbatch.device.model import abstract_params
from jbatch.device.programs import StepSpec
from jbatch.device.settings import fixed_settings
from jbatch.device.state import free
from jbatch.errors import JBatchError

HALF_REPLACED = (
    "its weights are half old and half new: an update ended at parameter {name}; call update_weights with a "
    "whole tree once more, or make a new LLM"
)
DELETED = (
    "parameter {name} was deleted, or donated to a function: what weights() gives is the engine's own; call "
    "update_weights with a whole tree, or make a new LLM"
)


class Params:
    """Parameters in the form and the places that the programs of `spec` take them in.

    Args:
      given: by name.
    """

    def __init__(self, spec: StepSpec, given: Mapping[str, jax.Array]):
        self._spec = spec
        self._names = tuple(abstract_params(spec.config))
        self._half_replaced: str | None = None  # the parameter at which an update was cut off
        self.leaves: tuple[jax.Array, ...] = tuple(given[name] for name in self._names)

    def by_name(self) -> dict[str, jax.Array]:
        """The parameters; none after `free`."""
        config, num_ranks = self._spec.config, self._spec.ranks.size
        named = dict(zip(self._names, self.leaves, strict=False))
        for name in sharding.forms_of(config, num_ranks).keys() & named.keys():
            named[name] = sharding.original(name, named[name], config, num_ranks)
        return named

    def replace(
        self,
        sources: Mapping[str, weights.Source],
        on_replaced: Callable[[], None],
        on_all_replaced: Callable[[], None],
    ) -> None:
        """Replace one after the other, and take memory for one at a time. Where that is cut off, what is left
        is neither the old nor the new: `check` refuses it until all have been replaced by another call.

        Args:
          sources: what each parameter is made of, see `weights.match`.
          on_replaced: called after each.
          on_all_replaced: called at the end, before `check` allows them.
        """
        forms = sharding.forms_of(self._spec.config, self._spec.ranks.size)
        placed = self._spec.params
        for idx, (name, leaf) in enumerate(abstract_params(self._spec.config).items()):
            with fixed_settings():
                new = weights.make(sources[name], leaf, placed[name].sharding, forms.get(name))
            self._half_replaced = name
            self.leaves = (*self.leaves[:idx], new, *self.leaves[idx + 1 :])
            on_replaced()
        on_all_replaced()
        self._half_replaced = None

    def check(self) -> None:
        """Raise JBatchError where no step can compute with what is there."""
        if self._half_replaced is not None:
            raise JBatchError(HALF_REPLACED.format(name=self._half_replaced))

    def check_not_deleted(self, cause: BaseException) -> None:
        """Raise JBatchError for a parameter that somebody else deleted, which is what a step failed for."""
        deleted = [name for name, leaf in zip(self._names, self.leaves, strict=False) if leaf.is_deleted()]
        if deleted:
            raise JBatchError(DELETED.format(name=deleted[0])) from cause

    def free(self) -> None:
        """Free their memory."""
        free(self.leaves)
        self.leaves = ()
