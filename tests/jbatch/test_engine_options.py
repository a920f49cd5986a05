"""LLM shows each option of EngineConfig."""

import inspect

from jbatch.config import EngineConfig
from jbatch.engine_options import EngineOptions
from jbatch.llm import LLM

FIELDS = EngineConfig.__dataclass_fields__


def test_every_option_is_typed():
    assert list(EngineOptions.__annotations__) == list(FIELDS)


def test_the_signature_has_every_option_and_its_default():
    shown = inspect.signature(LLM).parameters
    assert [name for name in shown if name in FIELDS] == list(FIELDS)
    assert shown["max_num_seqs"].default == 64 and "options" not in shown
