"""Other weights for a model that is loaded, for whichever engine has requests on it."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from jbatch.config import UpdateMode, check_choice, plain
from jbatch.device.tree import sources_of
from jbatch.engine.engine import Engine
from jbatch.engine.replicas import AnyEngine, Replicas
from jbatch.errors import ConfigError
from jbatch.llm.opening import Opened
from jbatch.outputs import Label


def update_weights(
    opened: Opened, engine: AnyEngine, tree: Any, weight_version: Label | None, mode: UpdateMode
) -> None:
    """See `LLM.update_weights`; `engine` is the LLM's own, and another one may have the requests."""
    runner = opened.runners[0]
    runner.tenancy.check_process()
    check_choice("mode", mode, get_args(UpdateMode))
    label = plain(weight_version)
    if label is not None and type(label) not in (int, str):
        raise ConfigError("weight_version", label, "must be text or an integer")
    runner.check_open()
    sources = sources_of(tree, opened.model)
    replace = [partial(each.replace_params, sources, label) for each in opened.runners]
    if isinstance(engine, Replicas):
        engine.update(replace, mode)
        return
    tenant = runner.tenancy.tenant
    has_requests = tenant if isinstance(tenant, Engine) else engine
    has_requests.update(replace[0], mode)
