"""What XLA says of a program while it compiles it: what is launched, and which device it is for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

# The first of these that is there: after XLA's last passes, where they changed it.
LAUNCHES = ("*.thunk_sequence_after_thunk_passes.txt", "*.thunk_sequence.txt")
TARGET = "*.gpu_target_config.pbtxt"


def keep(dump: Path, work: Path, name: str) -> int | None:
    """Take from a program's dump what the archive has room for; the number of its CUDA graphs, or None where
    XLA said nothing: on a CPU, and of a program that was kept from an earlier call."""
    for target in sorted(dump.glob(TARGET))[:1]:
        shutil.copy(target, work / "target.txtpb")
    found = [file for pattern in LAUNCHES for file in sorted(dump.glob(pattern))]
    graphs = None
    if found:
        text = found[0].read_text()
        (work / "launches").mkdir(exist_ok=True)
        (work / "launches" / f"{name}.txt").write_text(text)
        graphs = num_graphs(text)
    shutil.rmtree(dump, ignore_errors=True)
    return graphs


def num_graphs(launches: str) -> int:
    """CUDA graphs in XLA's list of what it launches, those in loops' bodies included."""
    return len(re.findall(r"^\s*\d+: kCommandBuffer\b", launches, re.MULTILINE))
