"""The five tasks of the demo model: prompts, their right answers, and which prompts training never sees."""

from __future__ import annotations

import random
import string
import zlib
from typing import NamedTuple

# (smallest, largest) size: digits of the longer operand, letters, digits, pairs, numbers
SIZES = {"add": (1, 3), "reverse": (2, 8), "sort": (2, 8), "lookup": (12, 47), "count": (2, 12)}
HELD_OUT_SHARE = 10  # one prompt in ten is held out


class Example(NamedTuple):
    """A prompt and the only right continuation; after it the model ends the sequence."""

    task: str
    prompt: str
    answer: str


def draw(task: str, size: int, rng: random.Random) -> Example:
    """One prompt of `task`, e.g. "reverse apple=" with answer "elppa"."""
    make = {"add": _add, "reverse": _reverse, "sort": _sort, "lookup": _lookup, "count": _count}
    return Example(task, *make[task](size, rng))


def is_held_out(example: Example) -> bool:
    """Whether training skips this prompt, and every prompt that would give its answer away."""
    question = example.prompt
    if example.task == "add":  # both orders of the operands
        question = "+".join(sorted(question.rstrip("=").split("+")))
    elif example.task == "lookup":  # all keys of the same list
        question = question.partition("?")[0]
    return zlib.crc32(question.encode()) % HELD_OUT_SHARE == 0


def demo_prompts(num: int, seed: int) -> list[Example]:
    """Held-out prompts of all tasks and sizes, as they come: the same `seed` gives the same list."""
    rng = random.Random(seed)
    prompts: list[Example] = []
    while len(prompts) < num:
        task = rng.choice(list(SIZES))
        example = draw(task, rng.randint(*SIZES[task]), rng)
        if is_held_out(example):
            prompts.append(example)
    return prompts


def _add(size: int, rng: random.Random) -> tuple[str, str]:
    operands = [_number(size, rng), _number(rng.randint(1, size), rng)]
    rng.shuffle(operands)
    return f"{operands[0]}+{operands[1]}=", str(sum(operands))


def _number(digits: int, rng: random.Random) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _reverse(size: int, rng: random.Random) -> tuple[str, str]:
    word = "".join(rng.choices(string.ascii_lowercase, k=size))
    return f"reverse {word}=", word[::-1]


def _sort(size: int, rng: random.Random) -> tuple[str, str]:
    digits = rng.choices(string.digits, k=size)
    return f"sort {''.join(digits)}=", "".join(sorted(digits))


def _lookup(size: int, rng: random.Random) -> tuple[str, str]:
    pairs = {key: rng.choice(string.digits) for key in rng.sample(string.ascii_letters, size)}
    wanted = rng.choice(list(pairs))
    return ", ".join(f"{key}{value}" for key, value in pairs.items()) + f" ?{wanted}=", pairs[wanted]


def _count(size: int, rng: random.Random) -> tuple[str, str]:
    first = rng.randrange(1000 - size)
    last = first + size - 1
    return f"count {first} to {last}=", " ".join(str(number) for number in range(first, last + 1))
