"""The notebook: its cells, run here without Jupyter, give what is stored with them."""

import ast
import contextlib
import io
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples/lab.ipynb"
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def cells():
    notebook = json.loads(PATH.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(cell, names):
    """What a cell prints, and the value of its last line, as a notebook has them."""
    tree, printed = ast.parse("".join(cell["source"])), io.StringIO()
    last = tree.body.pop()
    assert isinstance(last, ast.Expr), "each cell shows something"
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, PATH.name, "exec"), names)
        value = eval(compile(ast.Expression(last.value), PATH.name, "eval"), names)
    return printed.getvalue(), value


def stored(cell):
    """The same, as the file has them: text, and representations by their types."""
    outputs = cell["outputs"]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    printed = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    (shown,) = (output["data"] for output in outputs if output["output_type"] == "execute_result")
    return printed, {kind: "".join(lines) for kind, lines in shown.items()}


def test_cells_give_what_is_stored(cells, monkeypatch):
    monkeypatch.chdir(PATH.parent)
    names = {}
    for cell in cells:
        printed, value = run(cell, names)
        shown = {"text/plain": repr(value)}
        if hasattr(value, "_repr_html_"):
            shown["text/html"] = value._repr_html_()
        assert stored(cell) == (printed, shown)


def test_it_is_small_and_of_no_machine(cells):
    text = PATH.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES and str(PATH.parents[1]) not in text
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("text/html" in stored(cell)[1] for cell in cells) == 5
