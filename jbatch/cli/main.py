"""How this process runs a command: what goes wrong is one line, and the exit code says of what kind it is."""

from __future__ import annotations

import signal
import sys
import warnings
from typing import Any

import typer

from jbatch.cli.commands import app
from jbatch.cli.logs import logged_by
from jbatch.cli.options import argument_hint, flag_hint
from jbatch.cli.say import say
from jbatch.cli.streams import flush_stderr, flush_stdout, hold_streams
from jbatch.config import EngineConfig
from jbatch.errors import JBatchError, JobError, describe_os_error, is_failure
from jbatch.jobs.signals import INTERRUPTED, exit_at_once
from jbatch.tracebacks import describe_unforeseen

REFUSED, FAILED = 2, 3  # exit codes
UsageError: Any = typer.BadParameter.__mro__[2]  # the base of all that is wrong with arguments


def main(args: list[str] | None = None) -> None:
    """Run a command and exit. What the user can put right is one line on standard error, and exit code 2; a
    failure of the machine, or of jbatch itself, is one line and exit code 3."""
    signal.signal(signal.SIGINT, _exit_at_once)
    warnings.showwarning = _warn
    hold_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal does not know is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    with logged_by(say):
        code = _run(sys.argv[1:] if args is None else args)
    why_not = flush_stdout()
    if why_not is not None and code != FAILED:
        say(why_not)
    flush_stderr()
    sys.exit(FAILED if why_not is not None else code)


def _run(args: list[str]) -> int:
    """Run a command; its exit code."""
    try:
        return app(args or ["--help"], prog_name="jbatch", standalone_mode=False) or 0
    except UsageError as error:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "jbatch"
        say(f"{_usage_message(error)} (see {command} --help)")
        return REFUSED
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        return FAILED  # typer's way, without a word: who read the output has left
    except OSError as error:
        why_not = flush_stdout() if error.filename is None else None
        say(why_not or describe_os_error(error))
        return FAILED if is_failure(error) else REFUSED
    except Exception as error:
        if isinstance(error, _refusals()):
            say(str(error))
            return FAILED if isinstance(error, JobError) else REFUSED
        if _jax_refused(error):
            say(f"JAX: {error}")
            return REFUSED
        say(describe_unforeseen(error))
        return FAILED


def _usage_message(error: Any) -> str:
    """What is wrong with the arguments; of an unknown flag also what may have been meant by it."""
    flag = getattr(error, "option_name", None)
    if "unexpected extra argument" in (message := error.format_message()) and error.ctx is not None:
        return message + argument_hint(error.ctx.command.params)
    if not hasattr(error, "possibilities") or error.ctx is None or not flag:
        return message
    return f"No such option: {flag}{flag_hint(flag, error.ctx.command.params)}"


def _refusals() -> tuple[type[Exception], ...]:
    """What the user can put right; a warning, too, of which Python was told to make an error. Errors of
    `weights` only once a command has loaded it: a file of the user's may have this name."""
    module = sys.modules.get("weights.errors")
    return (JBatchError, Warning, *(() if module is None else (module.WeightsError,)))


def _jax_refused(error: Exception) -> bool:
    """Whether JAX could not be imported for a variable of the environment, which its error names."""
    return isinstance(error, ValueError) and "jax" not in sys.modules and "jax._src" in sys.modules


def _exit_at_once(*_: object) -> None:
    """End on Ctrl-C: an exception would get lost in an import, and would wait for compilations to end."""
    exit_at_once(INTERRUPTED)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    hint = ""
    if "reading persistent compilation cache" in str(message):  # JAX never replaces what it cannot read
        hint = f" (to be rid of this, delete {EngineConfig.compilation_cache_dir})"
    say(f"{message}{hint}")
