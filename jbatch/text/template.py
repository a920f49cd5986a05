"""Rendering a chat template in a process of its own, within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from jbatch.distribution import install_hint
from jbatch.errors import ConfigError, RequestError
from jbatch.text.chat_options import ChatOptions
from jbatch.text.messages import Message

WORKER = Path(__file__).with_name("template_worker.py")
START_LIMIT_S = 120.0  # to import transformers, from a cold disk too
RENDER_LIMIT_S = 5.0


class Renderer:
    """Renders templates with transformers' sandboxed Jinja; safe to call from several threads, and in forked
    processes. Whatever one conversation costs, the next one is rendered.

    The process that renders starts with the first call, and again after it had to be killed or died.
    """

    def __init__(self, special_tokens: dict[str, str], limit_s: float = RENDER_LIMIT_S):
        self._special_tokens = special_tokens
        self._limit_s = limit_s
        self._workers: dict[int, _Worker] = {}  # by the process that asks: a fork does not take its parent's

    def render(self, template: str, messages: list[Message], options: ChatOptions) -> str:
        """The text of a conversation.

        Raises:
          RequestError: where the template raises, or takes too long or too much memory.
          ConfigError: where transformers or jinja2 is not installed.
        """
        question = _question(messages, options)
        worker = self._workers.setdefault(os.getpid(), _Worker(self._special_tokens))
        with worker.lock:
            worker.start()
            if template != worker.known:
                question = {**question, "chat_template": template}
            reply = worker.ask(_as_json(messages, question), self._limit_s)
            worker.known = template if reply is not None and "text" in reply else None
        if reply is None:
            raise RequestError(
                "messages", messages, f"the chat template took more than {self._limit_s:g} s, or crashed"
            )
        if "error" in reply:
            raise RequestError("messages", messages, f"the chat template fails: {reply['error']}")
        return reply["text"]

    def close(self) -> None:
        """End the process. The next call starts another."""
        worker = self._workers.pop(os.getpid(), None)
        if worker is not None:
            worker.close()

    def __del__(self) -> None:
        self.close()


class _Worker:
    """A process that renders: for one question at a time, with `lock` held."""

    def __init__(self, special_tokens: dict[str, str]):
        self.lock = threading.Lock()
        self.known: str | None = None  # the template that it has: sent once, not with each question
        self.process: subprocess.Popen[str] | None = None
        self._special_tokens = special_tokens

    def start(self) -> None:
        """Start it where it does not run."""
        if self.process is not None and self.process.poll() is None:
            return
        self.close()  # one that died between two calls
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],  # -P: or jbatch's modules would hide others of their names
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            process_group=0,  # a Ctrl-C is meant for this process alone
        )
        self.known = None
        reply = self.ask(json.dumps(self._special_tokens), START_LIMIT_S)
        if reply is None or "missing" in reply:
            self.close()
            reason = reply["missing"] if reply else f"no answer within {START_LIMIT_S:g} s"
            raise ConfigError(
                "chat_template",
                "...",
                f"needs transformers and jinja2: {install_hint('chat')} ({reason})",
            )

    def ask(self, question: str, limit_s: float) -> Any:
        """Its answer to a JSON text. None where none came in time: then it is dead."""
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None, "it runs"
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            process.stdin.write(question + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # the pipe is broken
            answer = ""
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            self.close()
            return None
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _question(messages: list[Message], options: ChatOptions) -> dict[str, Any]:
    """What the process is asked: arguments of transformers' function, by name."""
    return {
        **(options.chat_template_kwargs or {}),
        "conversations": [messages],
        "add_generation_prompt": options.begins_answer,
        "continue_final_message": bool(options.continue_final_message),
        "tools": options.tools,
    }


def _as_json(messages: list[Message], question: dict[str, Any]) -> str:
    """Raises RequestError for values that JSON cannot hold, which only Python's callers have."""
    try:
        return json.dumps(question)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError("messages", messages, f"must be what JSON can hold: {error}") from None
