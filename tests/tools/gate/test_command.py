import subprocess
import sys
from types import SimpleNamespace

import pytest

from tools.gate import command as compile_for

OLD = {
    "target": "h200",
    "kernels": [{"jax": "0.10.2", "n": 1}, {"jax": "0.11.2", "n": 2}],
    "steps": [{"jax": "0.11.2"}],
}


def test_a_run_replaces_the_rows_of_its_own_jax():
    merged = compile_for.merge(OLD, "kernels", [{"jax": "0.11.2", "n": 3}])
    assert merged["kernels"] == [{"jax": "0.10.2", "n": 1}, {"jax": "0.11.2", "n": 3}]
    assert merged["steps"] == OLD["steps"], "the other part stays"


def test_a_first_run_has_both_parts():
    merged = compile_for.merge({}, "steps", [{"jax": "0.11.2"}])
    assert merged == {"schema": 1, "steps": [{"jax": "0.11.2"}], "kernels": []}


def test_a_name_that_no_case_has_is_an_error_that_names_their_words():
    cases = compile_for.kernel_case.cases()
    assert compile_for.named(cases, "decode") and compile_for.named([], "decode") == []
    with pytest.raises(compile_for.NoCase, match="decode, mosaic, llama2-7b"):
        compile_for.named(cases, "decoed")


def test_nothing_measured_is_an_error(monkeypatch, capsys):
    target = SimpleNamespace(name="h200", devices=[None])
    monkeypatch.setattr(compile_for.gpu_target, "set_up", lambda *_: target)
    monkeypatch.setattr(sys, "argv", ["gate", "h200", "--only", "decoed"])
    with pytest.raises(SystemExit) as ended:
        compile_for.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--only 'decoed': no case has this in its name" in said and "kernels: decode, mosaic" in said


def test_the_flags_come_before_jax():
    """In a fresh process: a flag that is set after jax was imported would do nothing, silently."""
    code = "import sys; from tools.gate import command; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
