"""Flags that several commands of `bench` have, each written down once. Nothing heavy is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from bench.options import ARM_NAMES, COMPARED_NAMES, DATASET_NAMES, HARDWARE_NAMES
from jbatch.cli.help import choices
from jbatch.cli.options import ENGINE_HELP
from jbatch.config import AdmissionName, PolicyName

DATASETS = f"{', '.join(DATASET_NAMES)}; the first three are divided by 4 for the demo model."
MODELS = (
    "demo; llama2-7b, llama3-8b, llama3-70b, llama3.2-1b, llama3.2-3b, 150m (random weights); or a model "
    "directory."
)


def several(names: Iterable[str], text: str, panel: str) -> Any:
    """An option that takes one of some names, and may be given more than once."""
    return typer.Option(metavar=choices(names), help=text, rich_help_panel=panel)


def policies_flag(default: str) -> Any:
    """The option of policies; `default` is said in its help."""
    text = f"Who is admitted first. May be repeated. [default: {default}]"
    return several(get_args(PolicyName), text, "Scheduling")


def admissions_flag(default: str) -> Any:
    """The option of admissions; `default` is said in its help."""
    text = f"{ENGINE_HELP['admission']} May be repeated. [default: {default}]"
    return several(get_args(AdmissionName), text, "Scheduling")


Model = Annotated[str, typer.Option(metavar="NAME|DIR", help=MODELS, rich_help_panel="Model")]
Dataset = Annotated[str, typer.Option(metavar="NAME", help=DATASETS, rich_help_panel="Workload")]
Costs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Costs that `jbatch bench calibrate` measured.", rich_help_panel="Costs"
    ),
]
HardwareName = Annotated[
    str | None,
    typer.Option(
        metavar=choices(HARDWARE_NAMES), help="Or costs derived from a data sheet.", rich_help_panel="Costs"
    ),
]
SimulatedModel = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="With --hardware: a name of --model elsewhere, but demo.",
        rich_help_panel="Costs",
    ),
]
Goodput = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ttft:MS", help="Limits: ttft, tpot, e2el. May be repeated.", rich_help_panel="Measurement"
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--output-json", metavar="FILE", help="Write results there; must not exist.", rich_help_panel="Output"
    ),
]
Details = Annotated[bool, typer.Option("--details", help="Print every figure.", rich_help_panel="Output")]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is simulated: costs of steps, and a workload by name."""

    costs: Costs = None
    hardware: HardwareName = None
    model: SimulatedModel = "llama3-8b"
    dataset_name: Dataset = "mixed_length"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a command of the ladder measures, beside a Setting, and where the results go."""

    model: Model = "demo"
    dataset_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"May be repeated: {DATASETS} [default: mixed_length]",
            rich_help_panel="Workload",
        ),
    ] = None
    arms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"May be repeated: {', '.join(ARM_NAMES)}. [default: all]",
            rich_help_panel="Arms",
        ),
    ] = None
    goodput: Goodput = None
    output_json: Json = None
    output_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="One file per dataset; must not exist.", rich_help_panel="Output"),
    ] = None
    details: Details = False

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """Each workload once."""
        return tuple(dict.fromkeys(self.dataset_name or ("mixed_length",)))


@dataclasses.dataclass(frozen=True)
class Lab:
    """What is compared in simulations, and where the results go."""

    policy: Annotated[list[str] | None, policies_flag("all")] = None
    predictor: Annotated[
        list[str] | None,
        typer.Option(
            metavar=choices(("none", "oracle", "noisy", "running-mean", "prompt-length"), "FILE"),
            help="Of output lengths; a file is a trained one. May be repeated. "
            "[default: none, oracle, noisy, running-mean]",
            rich_help_panel="Scheduling",
        ),
    ] = None
    admission: Annotated[list[str] | None, admissions_flag("optimistic")] = None
    output_json: Json = None
    output_png: Annotated[
        Path | None,
        typer.Option(
            "--output-png", metavar="FILE", help="Draw it there; must not exist.", rich_help_panel="Output"
        ),
    ] = None
    details: Details = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared with PyTorch, on which requests, and where the results go."""

    model: Model = "demo"
    dataset_name: Dataset = "mixed_length"
    arms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"May be repeated: {', '.join(COMPARED_NAMES)}. [default: all]",
            rich_help_panel="Arms",
        ),
    ] = None
    output_json: Json = None
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep the plans that are replayed; must not exist.", rich_help_panel="Output"
        ),
    ] = None
