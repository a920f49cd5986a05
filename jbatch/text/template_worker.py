"""A process that renders chat templates, and may be killed: the sandbox bounds neither time nor memory.

Run as a script. One JSON value per line: in come the texts of special tokens, by name, and out {} when all is
imported; then in come the arguments of transformers' function, by name, and out {"text"} or {"error"}. The
arguments lack "chat_template" where it is that of the time before.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

MEMORY = 2**30  # bytes that a template may take
MAX_TEXT = 2**24  # characters


def limit_memory() -> None:
    """Limit this process's memory to what it takes now and MEMORY more, where the system can."""
    import resource  # not on every system

    with open("/proc/self/status") as status:
        taken = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (taken * 1024 + MEMORY, hard))


def render(render_jinja_template: Any, arguments: dict[str, Any]) -> str:
    texts, _ = render_jinja_template(**arguments)
    if len(texts[0]) > MAX_TEXT:
        raise ValueError(f"the text has {len(texts[0])} characters: at most {MAX_TEXT} are allowed")
    return texts[0]


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever else is printed stays out of the replies
    known = json.loads(sys.stdin.readline())
    try:
        import jinja2  # noqa: F401 (transformers names it too late)
        from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=replies, flush=True)
        return
    with contextlib.suppress(ImportError, OSError, StopIteration, ValueError):
        limit_memory()
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        try:
            arguments = json.loads(line)
            known["chat_template"] = arguments.get("chat_template", known.get("chat_template"))
            reply = {"text": render(render_jinja_template, {**known, **arguments})}
        except Exception as error:  # whatever a template does
            reply = {"error": " ".join(f"{type(error).__name__}: {error}"[:1000].split())}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
