"""`jbatch plan` for a GPU that is not here, whose steps are compiled, not estimated. Says both.

    python -m tools.gate.plan_for h200 MODEL [--gpu-memory 141GB] [--max-num-seqs 256] ...

Needs the extra `aot`, and no driver. Options are those of EngineConfig, as `jbatch plan` spells them.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.gate import target as gpu_target


def device_memory(target: str) -> int:
    """Bytes, as the target's description says."""
    text = (gpu_target.DESCRIPTIONS / f"{target}.txtpb").read_text()
    found = re.search(r"device_memory_size: (\d+)", text)
    assert found is not None, f"{target}.txtpb names no device_memory_size"
    return int(found[1])


if TYPE_CHECKING:
    from jbatch.config import EngineConfig, ModelConfig


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=gpu_target.NAMES)
    parser.add_argument("model", type=Path)
    parser.add_argument("--gpu-memory", metavar="SIZE", help="[default: the target's]")
    for name in ("max-num-seqs", "max-model-len", "max-num-batched-tokens", "page-size", "num-pages"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--dtype")
    parser.add_argument("--attention-backend")
    args = vars(parser.parse_args())
    with tempfile.TemporaryDirectory(prefix="jbatch-plan-") as dump:
        target = gpu_target.set_up(args.pop("target"), Path(dump))
        return plan_for(target, args.pop("model"), args.pop("gpu_memory"), args)


def plan_for(target: gpu_target.Target, model_dir: Path, memory: str | None, options: dict[str, Any]) -> int:
    """Print the plan. The exit code is 2 where it does not fit."""
    from jbatch.cli.memory_report import gpu_share, make_report
    from jbatch.config import EngineConfig
    from jbatch.errors import ConfigError
    from jbatch.model_dir.resolve import resolve_max_model_len, resolve_model
    from jbatch.sizes import describe_bytes, parse_bytes

    try:
        config = EngineConfig(**{name: value for name, value in options.items() if value is not None})
        model = resolve_model(model_dir, config)
        gpu_bytes = device_memory(target.name) if memory is None else parse_bytes("gpu_memory", memory)
        max_model_len = resolve_max_model_len(config, model)
        estimates: list[int] = []

        def compiled(config: EngineConfig) -> int:
            in_fact, estimate = step_bytes(target, config, model, max_model_len)
            estimates.append(estimate)
            return in_fact

        source = f"temporaries, and state of penalties; of the program compiled for an {target.name.upper()}"
        share = gpu_share(gpu_bytes, config)
        report = make_report(model_dir, config, model, share, compiled, target.name.upper(), source)
    except ConfigError as error:
        print(f"plan_for: {error}", file=sys.stderr)
        return 2
    print(report.describe())
    print(f"  estimate      {describe_bytes(estimates[0])} of the largest step, without compiling it")
    return 0


def step_bytes(
    target: gpu_target.Target, config: EngineConfig, model: ModelConfig, max_model_len: int
) -> tuple[int, int]:
    """Bytes of the largest step with all features, as compiled, and as estimated."""
    from jbatch.device.build import spec_for, step_bytes_of
    from jbatch.device.process import extra_bytes
    from jbatch.device.programs import Program, temp_bytes
    from jbatch.sampler import Sampler
    from jbatch.seam.bucket import buckets_of

    spec = spec_for((target.device,), config, model, max_model_len)
    buckets = buckets_of(config, max_model_len)
    estimate = step_bytes_of(spec, buckets)
    if config.tensor_parallel_size > 1:  # there is one device to compile for
        return estimate, estimate
    every_page = config.max_num_seqs * spec.shape.pages_per_seq
    large = spec._replace(shape=spec.shape._replace(num_pages=every_page))
    largest = {bucket.tokens > 0: bucket for bucket in sorted(buckets, key=lambda b: b.num_places)}
    with gpu_target.compiling(target):
        sizes = [temp_bytes(large.compile(Program(bucket, Sampler.EXTENDED))) for bucket in largest.values()]
    extra = extra_bytes(Sampler.EXTENDED, spec.shape.num_rows, model.vocab_size)
    return max(sizes) + extra, estimate


if __name__ == "__main__":
    sys.exit(main())
