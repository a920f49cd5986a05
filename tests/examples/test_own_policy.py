"""The example of a policy does what it says."""

import re

from examples import own_policy


def test_short_prompts_wait_less(capsys):
    own_policy.main(num_prompts=64)
    lines = capsys.readouterr().out.splitlines()
    fcfs, mine = ([float(number) for number in re.findall(r"[0-9.]+(?= s )", line)] for line in lines)
    assert mine[0] < 0.8 * fcfs[0] and mine[1] > fcfs[1]
