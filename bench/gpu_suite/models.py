"""What the suite's parts that run an engine share: its options, and the attention that was fastest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# A part of what `jbatch demo` compiles: in the cache of whoever ran that, and of the tests.
TINY_OPTIONS: dict[str, Any] = {
    "max_num_seqs": 4,
    "max_model_len": 256,
    "page_size": 16,
    "max_num_batched_tokens": 64,
    "token_buckets": (64,),
    "decode_buckets": (4,),
    "device": "cpu",
    "show_progress": False,
}


def fastest_attention(steps_file: Path | None) -> str:
    """The backend of the fastest step of the first model in the file that bench.steps wrote, at its first
    size; "auto", the device's default, where nothing was measured."""
    if steps_file is None or not steps_file.exists():
        return "auto"
    rows = [row for row in json.loads(steps_file.read_text())["rows"] if row["status"] == "ok"]
    same = [row for row in rows if all(row[key] == rows[0][key] for key in ("model", "number", "length"))]
    return min(same, key=lambda row: row["ms"])["attention"] if same else "auto"
