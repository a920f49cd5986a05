"""Several devices that compute each step together: in a process of its own, which has as many."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_several_devices_in_a_process_of_their_own(request):
    options = ["--long"] if request.config.getoption("long") else []
    command = [sys.executable, "-m", "pytest", "tests/ranks", "-x", "-q", "--durations", "5", *options]
    environment = os.environ | {"JBATCH_TEST_DEVICES": "8"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0
