"""A predictor by its name, or from its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jbatch.errors import ConfigError
from jbatch.host.lengths.learned import read_predictor
from jbatch.host.lengths.prediction import Predictor
from jbatch.host.lengths.predictors import PromptLength, RunningMean

BY_NAME: dict[str, Callable[[], Predictor]] = {"running-mean": RunningMean, "prompt-length": PromptLength}


def find_predictor(name: str | None) -> Predictor | None:
    """None for None. Raises ConfigError for what is neither a name nor a file, and PredictorError for a file
    that is no predictor."""
    if name is None:
        return None
    if name in BY_NAME:
        return BY_NAME[name]()
    if not Path(name).is_file():
        raise ConfigError("predictor", name, f"must be {', '.join(BY_NAME)} or a file of a trained one")
    return read_predictor(name)
