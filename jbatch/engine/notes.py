"""What any thread may ask of an engine at any time: a note, which is followed before the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from jbatch.engine.pipeline import Pipeline
from jbatch.host.request import Key, Request


class New(NamedTuple):
    """A request that is to be queued."""

    serial: int  # of all that were added: ids may come again
    request: Request
    key: Key


class LetGo(NamedTuple):
    """Pages that are held for nobody any more."""

    hold_id: int


Note = New | LetGo | str  # a text: the id of a request to abort


class Notes:
    """They are followed in the order in which they were left. To leave one, and to read what is here, needs
    no turn.

    An interrupt may come with any line: so a note is dropped once it has been followed, and following it
    again does nothing.
    """

    def __init__(self) -> None:
        self._notes: deque[Note] = deque()

    def __bool__(self) -> bool:
        return bool(self._notes)

    def leave(self, note: Note) -> None:
        """For who has the next turn."""
        self._notes.append(note)

    @property
    def new_ids(self) -> list[str]:
        """The ids of requests that are to be queued."""
        return [note.request.request_id for note in tuple(self._notes) if isinstance(note, New)]

    def follow(self, pipeline: Pipeline, holds_back: Callable[[], bool]) -> None:
        """Mend what was cut off, and do what the notes say; new requests stay here while `holds_back`. Only
        for who has the turn."""
        self._mend(pipeline)
        held_back: dict[str, New] = {}
        for note in tuple(self._notes):
            if isinstance(note, New):
                if holds_back():
                    held_back[note.request.request_id] = note
                    continue
                pipeline.add(note.serial, note.request, note.key)
            elif isinstance(note, LetGo):
                pipeline.let_go(note.hold_id)
            elif (new := held_back.pop(note, None)) is not None:
                pipeline.requests.end_unqueued(new.serial, new.request)
                self._notes.remove(new)
            else:
                pipeline.abort(note)
            self._notes.remove(note)

    def _mend(self, pipeline: Pipeline) -> None:
        """A request that was added ends with the mending, so its note has been followed."""
        if pipeline.is_whole:
            return
        if self._notes and isinstance(note := self._notes[0], New):
            known = pipeline.requests.unfinished.get(note.request.request_id)
            if known is not None and known.serial == note.serial:
                self._notes.popleft()
        pipeline.mend("it was interrupted")
