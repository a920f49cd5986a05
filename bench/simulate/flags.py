"""Flags of the commands that simulate: each written down once. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATASETS = (
    "uniform_short, mixed_length, bursty_traffic, random, nano, sharegpt-like, prefix, few-shot, trace; "
    "the first three are divided by 4 for the demo model."
)
Dataset = Annotated[str, typer.Option(metavar="NAME", help=DATASETS)]
Costs = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Costs that `jbatch bench calibrate` measured.")
]
HardwareName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Or costs derived from a data sheet: h200, a100.")
]
SimulatedModel = Annotated[
    str, typer.Option(metavar="NAME", help="With --hardware: a name of --model elsewhere, but demo.")
]
Goodput = Annotated[
    list[str] | None, typer.Option(metavar="ttft:MS", help="Limits: ttft, tpot, e2el. May be repeated.")
]
Details = Annotated[bool, typer.Option("--details", help="Print every figure.")]
Json = Annotated[
    Path | None, typer.Option("--output-json", metavar="FILE", help="Write results there; must not exist.")
]
