"""What a call leaves for the next one, in one file: choices of the autotuner, compiled programs, results.

results.json                    the rows of the call
target.txtpb                    XLA's description of the device, from which others compile for it
launches/NAME.txt               what XLA launches for a step
cache/xla_gpu_per_fusion_...    what the autotuner chose, by fusion: small, and the most useful
cache/*                         programs, as JAX keeps them: the largest first, as far as there is room
torch/                          PyTorch's, if there is room
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

NAME = "warm.tar.gz"
MAX_BYTES = 15 * 2**20
TUNED = "xla_gpu_per_fusion_autotune_cache_dir"


def pack(work: Path, out: Path, max_bytes: int = MAX_BYTES) -> list[str]:
    """Write `out`/warm.tar.gz, with the results that lie there; what there was no room for."""
    buffer, left_out = io.BytesIO(), []
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for file, name in [(out / "results.json", "results.json"), *_files(work)]:
            if not file.is_file():
                continue
            if buffer.tell() + file.stat().st_size > max_bytes:
                left_out.append(name)
                continue
            archive.add(file, name, recursive=False)
            zipped.flush()  # so that the buffer tells
    partial = out / f"{NAME}.partial"
    partial.write_bytes(buffer.getvalue())
    partial.replace(out / NAME)
    return left_out


def _files(work: Path) -> Iterator[tuple[Path, str]]:
    """Files of the work folder and their names, the most useful first."""
    found = [work / "target.txtpb", *sorted((work / "launches").glob("*.txt"))]
    found += sorted((work / "cache" / TUNED).rglob("*"))
    programs = [file for file in (work / "cache").glob("*") if file.is_file()]
    found += sorted(programs, key=lambda file: (-file.stat().st_size, file.name))
    found += sorted((work / "torch").rglob("*"))
    return ((file, file.relative_to(work).as_posix()) for file in found)


def unpack(archive: Path, work: Path) -> None:
    """Put what an earlier call left into the work folder. Its results lie there as results.json.

    Raises:
      OSError, tarfile.TarError: for what is no such archive.
    """
    work.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as opened:
        opened.extractall(work, filter="data")


def find(out: Path, results: Path) -> Path | None:
    """The archive that lies in the output folder; else the newest in a folder of the results."""
    if (out / NAME).exists():
        return out / NAME
    return max(results.glob(f"*/{NAME}"), key=lambda file: file.stat().st_mtime, default=None)
