"""Which buckets are worth their programs.

Every bucket is compiled for each variant of sampling: seconds of start-up, and memory. It saves the padding
of steps that would take the next larger one. What that is worth depends on the device: where a step of 24
slots costs as much as one of 32, the bucket of 24 saves nothing, however often it is used. So the rule goes
by what steps cost and not by their sizes: leave out, one after the other, the bucket whose steps would cost
least more in the next larger one, as long as all that was left out costs at most `TOLERANCE` of the time of
all steps.
The largest of each kind stays, or what runs at most would not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bench.measure.drive import Run
from jbatch.seam.bucket import Bucket, align
from jbatch.sim.cost import Cost
from jbatch.sim.load import Load

TOLERANCE = 0.01


class Need(NamedTuple):
    """What a step was to hold."""

    slots: int
    tokens: int  # places of chunks


Needs = Mapping[Need, tuple[int, Load]]  # how often, and the mean load


class Sizes(NamedTuple):
    """Buckets, as options of an engine: ascending."""

    decode: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def number(self) -> int:
        """Of all of them."""
        return len(self.decode) + len(self.tokens)

    def bucket(self, need: Need) -> Bucket:
        """The smallest that holds a step. All that hold prompts have the most slots."""
        if need.tokens:
            return Bucket(self.decode[-1], _holding(self.tokens, need.tokens))
        return Bucket(_holding(self.decode, need.slots), 0)

    def smaller(self) -> Iterable[Sizes]:
        """All with one bucket less. One size of each kind is left, and not one of both: that would be another
        engine, of one program for all."""
        if self.number <= 3:
            return
        for size in self.decode[:-1]:
            yield Sizes(tuple(each for each in self.decode if each != size), self.tokens)
        for size in self.tokens[:-1]:
            yield Sizes(self.decode, tuple(each for each in self.tokens if each != size))


def _holding(sizes: tuple[int, ...], need: int) -> int:
    return next((size for size in sizes if size >= need), sizes[-1])


def needs_of(run: Run, loads: Sequence[Load]) -> Needs:
    """What a pass had to hold.

    Args:
      loads: of its steps, in order.
    """
    plans = [event.plan for event in run.events if event.plan is not None]
    sums: dict[Need, list[int]] = {}
    for plan, load in zip(plans, loads, strict=True):
        need = Need(len(plan.seq_ids), sum(align(len(chunk.token_ids)) for chunk in plan.chunks))
        total = sums.setdefault(need, [0] * 6)
        of_load = load.keys, load.longest, load.tokens, load.pairs, load.chunks
        for idx, number in enumerate((1, *of_load)):
            total[idx] += number
    return {
        need: (count, Load(Bucket(0, 0), need.slots, *(number // count for number in numbers)))
        for need, (count, *numbers) in sums.items()
    }


def worthwhile(sizes: Sizes, needs: Needs, costs: Cost) -> Sizes:
    """The buckets that are worth their programs, see above."""
    total_s = _seconds(sizes, needs, costs)
    most_s = (1 + TOLERANCE) * total_s
    while True:
        smaller = [(_seconds(each, needs, costs), each) for each in sizes.smaller()]
        seconds, best = min(smaller, default=(float("inf"), sizes))
        if seconds > most_s:
            return sizes
        sizes = best


def _seconds(sizes: Sizes, needs: Needs, costs: Cost) -> float:
    """What steps cost in these buckets."""
    return sum(
        count * costs.step_s(load._replace(bucket=sizes.bucket(need)))
        for need, (count, load) in needs.items()
    )
