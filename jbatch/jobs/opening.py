"""Opening a job's output: whose it is, what is in it, and what an earlier run left behind."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import NamedTuple

from jbatch.errors import ConfigError
from jbatch.jobs.files import remove_leftovers
from jbatch.jobs.input import Scan
from jbatch.jobs.options import JobOptions
from jbatch.jobs.output import Output, OutputFile, open_stream
from jbatch.jobs.report import Say
from jbatch.jobs.resume import Done, drop_errors, find_done
from jbatch.jobs.state import JobState, check_own, check_state, save_state, state_path


class Opened(NamedTuple):
    """An output that can be written to."""

    output: Output
    file: OutputFile | None  # the same, where it can be read back
    done: Done  # what is in it


def open_output(options: JobOptions, state: JobState, scan: Scan, say: Say, stack: ExitStack) -> Opened:
    """Open the output, which `stack` closes, and look what is in it.

    Raises:
      ConfigError: where it is another job's, or holds what no job wrote, or another process writes to it.
      OSError: where it cannot be read or written.
      OutputChanged: where somebody else writes to it at this moment.
    """
    if os.path.isdir(str(options.output_file)):
        raise ConfigError("output", str(options.output_file), "is a folder")
    if options.streams:
        say("the output cannot be read back: if this run is ended, the next one begins anew")
        return Opened(open_stream(str(options.output_file)), None, Done(scan.last_line_no))
    path = options.output_path
    if not options.force:
        if os.path.exists(path) and os.path.getsize(path):
            state = check_state(path, state)
        else:
            check_own(path)
    output = OutputFile(path)
    stack.callback(output.close)
    remove_leftovers(path, state_path(path))
    done = _find_done(options, output, scan, say)
    save_state(path, state)
    if done.num_done:
        say(f"going on: {done.num_done} of {scan.num_requests} have their results")
    if done.foreign:
        say(f"{len(done.foreign)} results are of no line of this input: they stay")
    return Opened(output, output, done)


def _find_done(options: JobOptions, output: OutputFile, scan: Scan, say: Say) -> Done:
    """What is in an output, once it holds whole results alone, and no errors that are to run again."""
    output.check()
    done = find_done(output.path, scan.ids, scan.last_line_no)
    if torn := output.remove_torn():  # only now is it known to be a job's
        say(f"removed a torn result of {torn} bytes from the end of {options.output_file}")
    output.check()
    if not options.retry_errors or not (dropped := drop_errors(output.path, output.check)):
        return done
    say(f"removed {dropped} error results: their lines run again")
    output.reopen()
    return find_done(output.path, scan.ids, scan.last_line_no)
