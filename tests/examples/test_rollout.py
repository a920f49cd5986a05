"""The example of a training loop learns, and its two log-probabilities are the same."""

import re

import pytest

from examples import rollout


def test_answers_become_shorter(capsys):
    means = rollout.main(4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(means) == 4
    assert means[-1] < 0.8 * means[0]
    differences = [float(re.search(r"largest difference (\S+)", line)[1]) for line in lines]
    assert max(differences) < 1e-3


@pytest.mark.long
def test_all_of_it():
    means = rollout.main()
    assert means[-1] < 0.6 * means[0]
