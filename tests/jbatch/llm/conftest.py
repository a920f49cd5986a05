"""A tiny model directory, and an LLM of it."""

import pytest

from jbatch import LLM
from tests.helpers.hf_checkpoint import write_checkpoint
from tests.helpers.small_llm import SMALL
from tests.helpers.tokenizers import numbered, save


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, seed=3)
    save(numbered(96), path)
    return path


@pytest.fixture(scope="module")
def llm(model_dir):
    with LLM(model_dir, **SMALL) as llm:
        yield llm
