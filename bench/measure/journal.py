"""Rows of results in a file, each written as soon as it exists, so that a killed run leaves them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

Row = dict[str, Any]

KEY = ("op", "case", "implementation")
UNDER_WAY = ("started", "checked")  # the status of a row that another one follows


class Journal:
    """A JSON-lines file. Rows of one (op, case, implementation) replace each other: the last one holds.

    With `resume`, the rows of an earlier process are kept; what it did not finish is marked as fatal to it.
    """

    def __init__(self, path: pathlib.Path, resume: bool = False):
        self.path = path
        self._rows: dict[tuple[Any, ...], Row] = {}
        if resume and path.exists():
            for line in path.read_text().splitlines():
                self._keep(json.loads(line))
            for row in self.rows:
                if row["status"] == "started":
                    reason = "the process ended here, or hung until it was stopped"
                    self.add(row | {"status": "failed", "fatal": True, "reason": reason})
        else:
            path.write_text("")

    @property
    def rows(self) -> list[Row]:
        """The rows that hold, in the order in which they came."""
        return list(self._rows.values())

    def add(self, row: Row) -> Row:
        """Write a row; it is in the file when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._keep(row)
        return row

    def is_done(self, op: str, case: str, implementation: str) -> bool:
        """Whether there is a row that no other one follows."""
        row = self._rows.get((op, case, implementation))
        return row is not None and row["status"] not in UNDER_WAY

    def deadly(self) -> set[tuple[str, str]]:
        """The pairs of (op, implementation) that ended a process."""
        return {(row["op"], row["implementation"]) for row in self.rows if row.get("fatal")}

    def _keep(self, row: Row) -> None:
        """Let a row take the place of the one before it."""
        key = tuple(row[name] for name in KEY)
        self._rows.pop(key, None)
        self._rows[key] = row
