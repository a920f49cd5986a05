"""Tables lie down where a screen is too narrow for them."""

import re

from bench.report import page
from bench.report.page import Noted


def layout(*args):
    return re.search(r"<table([^>]*)>", page.table(*args))[1]


def test_a_table_that_a_phone_holds_stays_one():
    rows = [("static-padded", 1850, 4450, 6.84, 12.07, 1872, 5086)]
    assert layout(("latency, ms", *("TTFT p50",) * 6), rows) == ""
    assert layout(("a", "b"), []) == ""


def test_a_table_that_is_too_wide_is_stacked():
    wide = ("x", *(f"{n},000,000.0" for n in range(10, 16)))
    assert layout(("a", *"bcdefg"), [wide]) == ' class="stacked" style="--columns:4"'
    always = ("x", *(f"{n},000,000.0" for n in range(10, 30)))
    assert "stacked always" in layout(("a", *("b",) * 20), [always])
    assert layout(("a", "b"), [(Noted("x", "what x is"), 1)]) == ' class="stacked" style="--columns:1"'


def test_a_note_stands_in_its_cell_and_a_unit_is_not_torn():
    table = page.table(("gain", "output tokens/s"), [(Noted("a / b", "b: <slow>"), 2.5)])
    assert '<th scope="row">a / b<small>b: &lt;slow&gt;</small></th><td>2.5</td>' in table
    assert "output <span>tokens/s</span>" in table
