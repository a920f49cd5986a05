"""The command line of the long runs."""

import sys

import pytest

from tests.long import soak


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["signals", "--help"], 0, "with SIGINT and SIGTERM"),
        (["signals", "many"], 2, "'many': must be a whole number of 1 or more"),
        (["kill", "0"], 2, "'0': must be a whole number of 1 or more"),
        (["nothing"], 2, "invalid choice"),
        ([], 2, "part"),
    ],
)
def test_what_is_no_run_is_said_in_a_line(arguments, code, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["soak", *arguments])
    with pytest.raises(SystemExit) as ended:
        soak.main()
    assert ended.value.code == code and says in "".join(capsys.readouterr())


def test_a_part_gets_its_number(monkeypatch):
    given = []
    monkeypatch.setitem(soak.PARTS, "kill", (given.append, 200))
    for arguments in (["kill"], ["kill", "7"]):
        monkeypatch.setattr(sys, "argv", ["soak", *arguments])
        soak.main()
    assert given == [200, 7]
