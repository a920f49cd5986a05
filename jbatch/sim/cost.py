"""What steps cost: seconds, from what they compute. Measured on a machine, and kept in a JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jbatch.errors import JBatchError
from jbatch.model_dir.data_file import Kind, read_data_file
from jbatch.seam.bucket import Bucket
from jbatch.sim.load import Load

SCHEMA = 2


class CostError(JBatchError, ValueError):
    """Costs that cannot be read, or that lack what is asked of them: names file, entry and value."""


KIND = Kind("costs", SCHEMA, "table of costs", "jbatch bench calibrate", CostError)


class Cost(Protocol):
    """Seconds of device and host."""

    def step_s(self, load: Load) -> float:
        """The device's, for a step."""

    @property
    def host(self) -> HostCost:
        """The host's."""


class HostCost(NamedTuple):
    """Seconds that the host works: to take a request in, and for each step."""

    request_s: float = 0.0
    step_s: float = 0.0
    slot_s: float = 0.0  # more, for each sequence that decodes


class BucketCost(NamedTuple):
    """A linear model of one bucket's steps.

    `factors` are measured over modelled times, in ascending groups of equally many steps, the mean of each:
    how steps of equal load differ.
    """

    base_s: float
    key_s: float = 0.0  # for each token that decoding sequences attend to
    longest_s: float = 0.0  # for each token of the longest of them, in whole blocks
    token_s: float = 0.0  # for each token of a prompt
    pair_s: float = 0.0  # for each pair of a prompt's token and one that it attends to
    chunk_s: float = 0.0  # for each prompt that these tokens are of
    block: int = 1  # tokens that a kernel reads at once: of the longest sequence, too
    num_steps: int = 0  # that it was fitted to
    factors: tuple[float, ...] = (1.0,)

    def step_s(self, load: Load) -> float:
        """Seconds, before chance."""
        return (
            self.base_s
            + self.key_s * load.keys
            + self.longest_s * -(-load.longest // self.block) * self.block
            + self.token_s * load.tokens
            + self.pair_s * load.pairs
            + self.chunk_s * load.chunks
        )


SECONDS = tuple(name for name in BucketCost._fields if name.endswith("_s"))


@dataclasses.dataclass(frozen=True)
class CostTable:
    """Costs of the buckets that were measured, and what they were measured with.

    Attributes:
      about: machine, model and the engine's options.
    """

    buckets: dict[Bucket, BucketCost]
    host: HostCost
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    def step_s(self, load: Load) -> float:
        """Raises CostError for a bucket without costs."""
        cost = self.buckets.get(load.bucket)
        if cost is None:
            known = ", ".join(map(_name, sorted(self.buckets)))
            raise CostError(f"no costs of a step of {_name(load.bucket)}; there are those of {known}")
        return cost.step_s(load)

    def write(self, path: str | Path) -> None:
        """As JSON, for `read_costs`."""
        buckets = [bucket._asdict() | cost._asdict() for bucket, cost in sorted(self.buckets.items())]
        document = {"schema": SCHEMA, "kind": KIND.name, "host": self.host._asdict(), "buckets": buckets}
        Path(path).write_text(json.dumps(document | {"about": self.about}, indent=1, allow_nan=False) + "\n")


def read_costs(path: str | Path) -> CostTable:
    """What `CostTable.write` wrote. Raises CostError, naming the file and the entry."""
    document = read_data_file(path, KIND)
    try:
        host = HostCost(
            **{name: _seconds(f"host.{name}", v) for name, v in _object("host", document.get("host")).items()}
        )
        entries = document.get("buckets")
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"buckets={entries!r:.60}: must be a list of at least one")
        buckets = dict(_bucket(f"buckets[{idx}]", entry) for idx, entry in enumerate(entries))
        about = _object("about", document.get("about", {}))
    except (TypeError, ValueError) as error:
        raise CostError(f"{path}: {error}") from None
    return CostTable(buckets, host, about)


def _bucket(where: str, entry: Any) -> tuple[Bucket, BucketCost]:
    fields = _object(where, entry)
    sizes = {name: _count(f"{where}.{name}", fields.get(name)) for name in Bucket._fields}
    seconds = {name: _seconds(f"{where}.{name}", fields.get(name)) for name in SECONDS}
    factors = fields.get("factors")
    if not isinstance(factors, list) or not factors:
        raise ValueError(f"{where}.factors={factors!r:.60}: must be a list of at least one number")
    return Bucket(**sizes), BucketCost(
        **seconds,
        block=_count(f"{where}.block", fields.get("block"), least=1),
        num_steps=_count(f"{where}.num_steps", fields.get("num_steps")),
        factors=tuple(_seconds(f"{where}.factors", factor) for factor in factors),
    )


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}={value!r:.60}: must be an object")
    return value


def _count(where: str, value: Any, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{where}={value!r:.60}: must be an integer of at least {least}")
    return value


def _seconds(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{where}={value!r}: must be a number of at least 0")
    return float(value)


def _name(bucket: Bucket) -> str:
    several = f" {bucket.steps} times" if bucket.steps > 1 else ""
    return f"{bucket.slots} slots and {bucket.tokens} tokens{several}"


class Chance:
    """How much longer or shorter than modelled each step takes, as measured steps did; by a seed."""

    def __init__(self, costs: CostTable, seed: int):
        self._costs, self._random = costs, random.Random(seed)  # noqa: S311

    @property
    def host(self) -> HostCost:
        return self._costs.host

    def step_s(self, load: Load) -> float:
        """One of such steps, drawn."""
        return self._costs.step_s(load) * self._random.choice(self._costs.buckets[load.bucket].factors)
