"""Files of plain data that jbatch writes for itself: costs, predictors, tuned options. JSON, with a kind and
a schema; nothing in them is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from jbatch.errors import JBatchError


class Kind(NamedTuple):
    """What a file is to hold."""

    name: str
    schema: int
    called: str  # as "a table of costs"
    writer: str  # the command that makes one
    error: type[JBatchError]


def read_data_file(path: str | Path, kind: Kind) -> dict[str, Any]:
    """The content of a file of this kind. Raises the kind's error, naming the file, for any other."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise kind.error(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise kind.error(f"{path}: is not JSON, and so no {_of(kind)}") from None
    if not isinstance(document, dict) or document.get("kind") != kind.name:
        raise kind.error(f"{path}: is no {_of(kind)}")
    if document.get("schema") != kind.schema:
        shown = f"schema={document.get('schema')!r:.40}"
        raise kind.error(f"{path}: {shown}: must be {kind.schema}: make it anew with `{kind.writer}`")
    return document


def _of(kind: Kind) -> str:
    return f"{kind.called}: `{kind.writer}` writes one"
