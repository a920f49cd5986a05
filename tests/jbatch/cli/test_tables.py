"""Tables and sentences at any width: nothing cut, no word broken, figures on the right."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jbatch.cli.tables import Lines, Page, Table, in_lines
from jbatch.cli.terms import MEANINGS, terms_in

WORDS = st.text("abcdefghij-/,()", min_size=1, max_size=14)
HEADINGS = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)


def shown(table, width):
    """The lines of a table on a terminal of some width."""
    page = Page(width=width, file=io.StringIO())
    page.print(table)
    return page.file.getvalue().splitlines()


@st.composite
def tables(draw):
    columns = draw(st.integers(1, 12))
    row = st.tuples(*[WORDS] * columns)
    headings = draw(st.lists(HEADINGS, min_size=columns, max_size=columns))
    return Table(headings, draw(st.lists(row, max_size=4)), num_names=min(columns, draw(st.integers(0, 2))))


@given(tables(), st.sampled_from((80, 120)))
@settings(max_examples=200, deadline=None)
def test_nothing_is_cut_and_no_word_is_broken(table, width):
    lines = shown(table, width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    expected = [word for cells in (table.headings, *table.rows) for cell in cells for word in cell.split()]
    assert all(words.count(word) >= expected.count(word) for word in expected)


def test_figures_are_right_aligned_under_headings_in_lines():
    table = Table(("arm", "E2EL p99, ms", "steps"), [("static", "1.5", "12345"), ("longer", "1234.0", "1")])
    assert shown(table, 24) == [
        "             E2EL",
        "  arm     p99, ms  steps",
        "  ──────  ───────  ─────",
        "  static      1.5  12345",
        "  longer   1234.0      1",
        "",
    ]
    assert shown(table, 30)[0] == "  arm     E2EL p99, ms  steps"


def test_a_table_that_is_too_wide_comes_in_parts_with_the_names():
    table = Table(("arm", "first", "second"), [("static", "1", "2")])
    assert shown(table, 20) == [
        *("  arm     first", "  ──────  ─────", "  static      1", ""),
        *("  arm     second", "  ──────  ──────", "  static       2", ""),
    ]


def test_a_column_without_any_figure_is_left_out():
    rows = [("static", "", "1"), ("continuous", "", "")]
    assert shown(Table(("arm", "spread", "steps"), rows), 80) == shown(
        Table(("arm", "steps"), [(name, steps) for name, _, steps in rows]), 80
    )


def test_a_term_is_explained_where_it_comes_first():
    page = Page(width=80, file=io.StringIO())
    page.show(Table(("arm", "TTFT p50, ms"), []))
    page.show(Table(("arm", "TTFT p99, ms", "decode steps"), []))
    lines = page.file.getvalue().splitlines()
    said = [line for line in lines if ": " in line]
    assert [line.split(":")[0].strip() for line in said] == ["TTFT", "decode steps"]


def test_sentences_are_whole_in_files_and_broken_between_words_on_terminals(capsys):
    sentence = "a sentence of words " * 10
    Page().print(sentence)
    assert capsys.readouterr().out == f"{sentence}\n"
    page = Page(width=80, file=io.StringIO())
    page.print(sentence)
    lines = page.file.getvalue().splitlines()
    assert len(lines) == 3 and "".join(f"{line.rstrip()} " for line in lines) == sentence


@pytest.mark.parametrize(
    "text, terms",
    [
        ("decode steps", ["decode steps"]),
        ("prefill steps, decode", ["prefill steps", "decode"]),
        ("output tokens/s", ["tokens/s"]),
        ("unpreempted, ITL p99", ["ITL"]),
    ],
)
def test_terms_are_found_as_whole_words(text, terms):
    assert terms_in([text]) == terms


def test_meanings_are_a_line_each():
    assert all(len(f"  {term}: {meaning}") <= 80 for term, meaning in MEANINGS.items())


def test_a_line_goes_on_below_its_last_column():
    page = Page(width=40, file=io.StringIO())
    page.print(
        Lines("  weights    14.96 GiB   8 B parameters in bfloat16\n  note: one line of words that is long")
    )
    assert page.file.getvalue().splitlines() == [
        "  weights    14.96 GiB   8 B parameters",
        "                         in bfloat16",
        "  note: one line of words that is long",
    ]


def test_a_path_is_not_broken():
    assert (
        in_lines("jbatch: is in /a/long/path-with-hyphens", 20)
        == "jbatch: is in\n  /a/long/path-with-hyphens"
    )
