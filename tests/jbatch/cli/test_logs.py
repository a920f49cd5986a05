"""The logger of a command."""

import logging

from jbatch.cli.logs import logged_by
from jbatch.progress import LOGGER, say


def test_lines_are_said_once_and_by_the_command_alone(caplog):
    said = []
    before = LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)
    with logged_by(said.append), caplog.at_level(logging.INFO):
        say("compiling 3 of 12")
    assert said == ["compiling 3 of 12"] and not caplog.records
    assert (LOGGER.level, LOGGER.propagate, LOGGER.handlers) == before


def test_lines_are_said_in_a_process_where_they_were_not_wanted_before():
    assert not LOGGER.isEnabledFor(logging.INFO)  # which a logger remembers
    said = []
    with logged_by(said.append):
        say("compiling 3 of 12")
    assert said == ["compiling 3 of 12"] and not LOGGER.isEnabledFor(logging.INFO)
