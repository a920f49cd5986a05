import subprocess
import sys

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


def test_the_flags_come_before_jax():
    """In a fresh process: a flag that is set after jax was imported would do nothing, silently."""
    code = "import sys; from tools.gate import command; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
