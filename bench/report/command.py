"""`jbatch bench report DIR`: all results of a folder as one HTML page, and its pictures as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import arms as report_arms
from bench.report import gains
from bench.report import page as report_page
from bench.report import policies as report_policies
from bench.report import suite as report_suite
from bench.report.page import Section
from jbatch.errors import ConfigError

PAGE = "report.html"

# What makes a section of a result's file, by the result's kind and in the order of the page. A section is
# text from `page`, and pictures: panels of `bars`, `plot` or elements of their own, with a caption, a legend
# and an `alt` that says what they show.
MAKERS = report_suite.MAKERS | report_arms.MAKERS | report_policies.MAKERS


LOOKED_FOR = "(*.json that `jbatch bench ... --output-json` wrote)"


class Left(NamedTuple):
    """A file that is not in the report, and why."""

    file: str
    reason: str


def write(folder: Path, max_pictures: int | None = None) -> Path:
    """Read every JSON file of the folder; write report.html and the pictures; the page's path.

    A file that cannot be read is named on the page, with the reason; the others are drawn.

    Args:
      max_pictures: pictures that the folder may hold in the end; the page has all of them anyway.

    Raises:
      ConfigError: for a folder without results.
    """
    if not folder.is_dir():
        raise ConfigError("folder", str(folder), "is no directory")
    files = sorted(folder.glob("*.json"))
    sections, left, across = read(files)
    if not sections:
        raise ConfigError("folder", str(folder), f"holds no results {LOOKED_FOR}: {_why_none(left)}")
    page = folder / PAGE
    title = f"jbatch: results in {folder.resolve().name}"
    page.write_text(report_page.page(title, _body(sections, left, across)), encoding="utf-8")
    pictures = sorted((p for s in sections for p in s.pictures), key=lambda picture: picture.rank)
    names = {picture.file for picture in pictures}
    drawn = (file.name for file in folder.iterdir() if file.suffix in (".png", ".svg"))
    others = sum(name not in names for name in drawn)
    room = None if max_pictures is None else max(0, max_pictures - others)
    for picture in pictures[:room]:
        (folder / picture.file).write_bytes(picture.data)
    return page


def read(files: Sequence[Path]) -> tuple[list[Section], list[Left], list[str]]:
    """A section for each file that holds a result, in the order of MAKERS; the other files; and what can be
    said of several files at once."""
    sections: list[tuple[int, Section]] = []
    contents, left = [], []
    for file in files:
        try:
            content = _content(file)
            kind = content["kind"]
            sections.append((list(MAKERS).index(kind), MAKERS[kind](file, content)))
            contents.append(content)
        except (OSError, ValueError, ConfigError) as error:
            left.append(Left(file.name, str(error)))
        except (KeyError, TypeError, IndexError, AttributeError) as error:  # a result of another make
            left.append(Left(file.name, f"is malformed: {type(error).__name__}: {error}"))
    ordered = [section for _, section in sorted(sections, key=lambda pair: pair[0])]
    return ordered, left, gains.over_unbatched(contents)


def _why_none(left: Sequence[Left]) -> str:
    """What there is instead of a result, in a line."""
    if not left:
        return "there is no JSON file in it"
    others = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    return f"{left[0].file} {left[0].reason}{others}"


def _content(file: Path) -> dict[str, Any]:
    """A file's content. Raises ValueError for what is not a result of a known kind."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != 1:
        raise ValueError("is no result: it has no schema 1")
    if content.get("kind") not in MAKERS:
        raise ValueError(f"kind {content.get('kind')!r}: must be one of {', '.join(MAKERS)}")
    return content


def _body(sections: Sequence[Section], left: Sequence[Left], across: Sequence[str]) -> list[str]:
    body = []
    if len(sections) > 1:
        body.append(report_page.contents((section.anchor, section.title) for section in sections))
    if left:
        body += [report_page.heading("Files left out"), report_page.table(("file", "why"), left)]
    return [*body, *across, *(section.html() for section in sections)]
