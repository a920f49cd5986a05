"""Run the PyTorch engine's Triton kernel in Triton's interpreter, and print what came out as JSON.

A process of its own: TRITON_INTERPRET must be set before triton is first imported.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from bench.compare.torch_engine.attention import gather_decode
from bench.compare.torch_engine.kernels import choose
from bench.compare.torch_engine.model import from_jax
from bench.compare.torch_engine.runner import Options, TorchRunner
from bench.compare.torch_engine.triton_decode import paged_decode, splits_for
from jbatch.seam.shape import StateShape
from tests.helpers.attention_cases import Case, make_case
from tests.helpers.tiny_engine import DECODE, MIXED, SHAPE, drain, make_engine, tiny_config, tiny_params

HEADS = ((4, 4, 32), (4, 2, 24), (6, 2, 64), (8, 1, 16), (5, 1, 8), (20, 1, 16))  # heads, kv_heads, head_dim
LENS = ((1, 17, 0, 64, 130), (65, 16, 0, 63, 127))  # page borders, block borders, dead slots
PAGING = (  # page_size, splits, dtype: the interpreter is NumPy's, which has no bfloat16
    (16, 1, "float32"),
    (64, 3, "float16"),
    (32, 2, "float32"),
)


def cases() -> list[tuple[str, Case, int]]:
    found = []
    for number, (num_heads, kv_heads, head_dim) in enumerate(HEADS):
        for page_size, splits, dtype in PAGING[number % 2 : 2 + (number == 0)]:
            lens = LENS[number % 2]
            case = make_case(
                number,
                [int(n > 0) for n in lens],
                lens,
                num_heads=num_heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                page_size=page_size,
                decode=True,
                dtype=dtype,
                loudness=3.0,
                shared_pages=number % 2,
            )
            name = (
                f"{num_heads}/{kv_heads} heads of {head_dim}, pages of {page_size}, {splits} splits, {dtype}"
            )
            found.append((name, case, splits))
    return found


def tensors(case: Case) -> tuple[torch.Tensor, ...]:
    dtype = getattr(torch, case.dtype)
    arrays = (case.q, case.kv_pages)
    q, kv_pages = (torch.from_numpy(array).to(dtype) for array in arrays)
    return q, kv_pages, torch.from_numpy(case.block_tables), torch.from_numpy(case.kv_lens)


def error_of(out: torch.Tensor, case: Case) -> float:
    """The largest error, in units of what rounding may cost; NaN where there is one in a live row."""
    wrong = np.abs(out.double().numpy() - case.expected)[case.live]
    return float((wrong / np.maximum(case.max_error[case.live], 1e-30)).max())


def run_case(case: Case, splits: int) -> dict[str, float]:
    q, kv_pages, tables, lens = tensors(case)
    out = paged_decode(q, kv_pages, tables, lens, splits)
    dead = lens == 0
    alone = paged_decode(q[:1], kv_pages, tables[:1], lens[:1], splits)
    # A slot of no tokens reads its queries, which are NaN here, and nothing of the cache.
    return {
        "kernel": error_of(out, case),
        "gather": error_of(gather_decode(tables, lens)(torch.nan_to_num(q), kv_pages), case),
        "dead": float(out[dead].nan_to_num().abs().max()) if dead.any() else 0.0,
        "alone": float((alone[0] - out[0]).abs().max()),
    }


def run_engine(kernel: str) -> dict[str, list[int]]:
    """Greedy tokens of a few requests."""
    from jbatch import SamplingParams

    runner = TorchRunner(tiny_config(), from_jax(tiny_params()), SHAPE, [DECODE, MIXED], Options(kernel))
    assert runner.kernel == kernel
    engine = make_engine(runner=runner)
    for number, prompt in enumerate(([5, 6, 7], list(range(3, 30)), [9] * 16, [4])):
        engine.add_request(str(number), prompt, SamplingParams(temperature=0, max_tokens=3))
    return {key: output.outputs[0].token_ids for key, output in drain(engine).items()}


def main() -> None:
    torch.set_num_threads(1)
    assert choose("triton", tiny_config(), StateShape(1, 2, 16, 1), torch.device("cpu"))[0] == "triton"
    result = {name: run_case(case, splits) for name, case, splits in cases()}
    engine = {kernel: run_engine(kernel) for kernel in ("triton", "gather")}
    splits = [splits_for(8, 1024), splits_for(2048, 1 << 20), splits_for(1, 64)]
    print(json.dumps({"cases": result, "engine": engine, "splits": splits}))


if __name__ == "__main__":
    main()
