"""Reads a tokenizer.json in a process of its own first: the library, which is Rust, may abort or never end on
one that is damaged, and no exception handler would help.

Run as a script, it is that process: the file comes on standard input, what is wrong goes to standard output.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

TEXTS = ("Hello, world! 123\n\t", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "日本語 \U0001f600 e\u0301", " ")
WAIT_S = 300.0  # of real time: only a process that sleeps takes it


@functools.lru_cache(maxsize=1)  # one model is loaded many times, not many models
def refusal(data: bytes) -> str | None:
    """Why a tokenizer.json cannot be used, in one line; None where it can."""
    if not sys.executable:  # Python inside of another program
        return None
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-P", __file__]  # -P: names of modules here are no names of the library's
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, env=environment, timeout=WAIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end after {WAIT_S:.0f} s"
    said = done.stdout.decode(errors="replace").strip()
    return None if done.returncode == 0 else said or _of_exit_code(done.returncode, len(data))


def _of_exit_code(code: int, size: int) -> str:
    """Why a process ended that had nothing to say."""
    import signal

    if code in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGPROF):
        return f"no end after {cpu_limit_s(size)} s of computing"
    if code == -signal.SIGABRT:
        return f"damaged, or it needs more than {memory_limit(size)} bytes of memory"
    return f"reading it ended a process with code {code}"


def cpu_limit_s(size: int) -> int:
    """Seconds of computing that a file of so many bytes may take; Llama 3's 9 MB take about one."""
    return 4 + size // 2**19


def memory_limit(size: int) -> int:
    """Bytes of memory that a file of so many bytes may take."""
    return 2**30 + 64 * size


def probe(data: bytes) -> str | None:
    """Load a tokenizer, encode and decode; what is wrong with it, in one line."""
    try:
        tokenizer = load(data)
        for text in TEXTS:
            _try_out(tokenizer, text)
    except BaseException as error:  # a Rust panic is no Exception
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None


def load(data: bytes) -> tokenizers.Tokenizer:
    """The tokenizer in a file's bytes. Raises what the library raises: an Exception, or a panic, which is a
    BaseException."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _try_out(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    try:
        tokenizer.decode(tokenizer.encode(text).ids)
    except Exception:  # a text that it cannot encode is that request's error
        return


def main() -> int:
    data = sys.stdin.buffer.read()
    try:
        import resource
    except ImportError:  # not everywhere
        pass
    else:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit_s(len(data)),) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit(len(data)),) * 2)
    reason = probe(data)
    print(reason or "")
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
