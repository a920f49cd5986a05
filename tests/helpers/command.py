"""Run the command line inside this process."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jbatch.cli import main as cli
from tests.helpers.hf_checkpoint import tiny, write_checkpoint
from weights.demo import tasks

DEMO = Path(tasks.__file__).parent
SMALL = ("--device", "cpu", "--max-model-len", "32", "--max-num-seqs", "1")


class Ended(NamedTuple):
    """How a command ended."""

    code: Any
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *args: str | Path) -> Ended:
    """Run `jbatch ARGS`, and leave no signal handler behind."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(arg) for arg in args])
    finally:
        signal.signal(signal.SIGINT, handler)
    return Ended(ended.value.code, *capsys.readouterr())


def write_model(model_dir: Path, **overrides: Any) -> Path:
    """A tiny random model with the demo's tokenizer, of one token per byte."""
    write_checkpoint(model_dir, tiny(vocab_size=264, num_hidden_layers=1, **overrides))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, model_dir / name)
    return model_dir
