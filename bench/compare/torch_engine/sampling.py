"""From logits to tokens as jbatch/device does it, for greedy sampling and temperature.

Noise comes from a hash of seed, sample, position and token id, which is not jbatch's,
so only greedy tokens compare.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jbatch.seam.rows import COLUMNS, NUM_SCALARS
from jbatch.seam.step_output import Status

MASK = 2**32 - 1


class Sampled(NamedTuple):
    """The outcome of sampling, for each draw."""

    output: Int[Tensor, "draws 3"]  # token, how many, status
    columns: Int[Tensor, "draws row_width"]  # the rows, advanced by the token


def sample(
    logits: Float[Tensor, "draws vocab"],
    columns: Int[Tensor, "draws row_width"],
    lengths: Int[Tensor, " draws"],
    live: Bool[Tensor, " draws"],
    *,
    plain: bool,
) -> Sampled:
    """Draw a token for each live draw, whose sequence then has `lengths` tokens in the cache.

    Args:
      plain: rows may have a temperature; else all are greedy.
    """
    stop_ids = columns[:, NUM_SCALARS:].long()
    banned = (columns[:, COLUMNS["min_left"]] > 0)[:, None] & (stop_ids >= 0)
    lowest = torch.where(banned, torch.finfo(logits.dtype).min, torch.inf).to(logits.dtype)
    logits = logits.scatter_reduce(1, stop_ids.clamp(min=0), lowest, "amin")  # ids may repeat
    finite = logits.isfinite().all(dim=-1)
    tokens = logits.argmax(dim=-1)
    if plain:
        temperature = columns[:, COLUMNS["temperature"]].contiguous().view(torch.float32)
        scaled = logits / torch.where(temperature > 0, temperature, 1.0)[:, None]
        seeds, samples = columns[:, COLUMNS["seed"]], columns[:, COLUMNS["sample_idx"]]
        noisy = scaled + gumbel(seeds, samples, lengths, logits.shape[-1])  # Gumbel-max
        tokens = torch.where(temperature > 0, noisy.argmax(dim=-1), tokens)
    stopped = (tokens[:, None] == stop_ids).any(dim=-1)
    budget = columns[:, COLUMNS["budget"]] - 1
    status = torch.where(budget <= 0, Status.OUT_OF_BUDGET, Status.RUNNING)
    status = torch.where(stopped, Status.STOPPED, status)
    status = torch.where(finite, status, Status.NON_FINITE)
    status = torch.where(live, status, Status.RUNNING)
    changes = {
        "last_token": tokens,
        "length": lengths,
        "budget": budget,
        "min_left": columns[:, COLUMNS["min_left"]] - 1,
        "finished": status != Status.RUNNING,
    }
    advanced = columns.clone()
    for name, value in changes.items():
        advanced[:, COLUMNS[name]] = value.to(columns.dtype)
    output = torch.stack((torch.where(live, tokens, 0), (live & finite).long(), status), dim=1)
    return Sampled(output.to(torch.int32), torch.where(live[:, None], advanced, columns))


def gumbel(
    seeds: Int[Tensor, " draws"],
    samples: Int[Tensor, " draws"],
    positions: Int[Tensor, " draws"],
    vocab_size: int,
) -> Float[Tensor, "draws vocab"]:
    """Noise that depends on a row's seed, sample number and position alone."""
    key = _mix(_mix(_mix(seeds.long() & MASK) ^ samples.long()) ^ positions.long())
    ids = torch.arange(vocab_size, device=seeds.device)
    bits = _mix(_mix(key[:, None] ^ _mix(ids)) + ids)
    uniform = ((bits >> 9).float() + 0.5) / 2**23  # 23 bits: neither 0 nor 1 in float32
    return -torch.log(-torch.log(uniform))


def _mix(x: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """MurmurHash3's finaliser (Appleby 2011) on the low 32 bits; products wrap in 64."""
    x = (x + 0x9E3779B9) & MASK  # 0 would stay 0
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)
