"""Where a job's cluster is; with Ray itself, replicas are lost for real."""

import json
import os
import signal
import socket
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from jbatch.errors import ConfigError
from jbatch.integrations.ray_data.cluster import check_reachable
from jbatch.integrations.ray_data.job import run_ray
from jbatch.jobs.command import run_generate
from tests.helpers.ray_rows import ENGINE, MODEL, rows_of, workers

NUM_LINES = 600


def test_a_cluster_that_cannot_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_reachable(f"127.0.0.1:{port}")
        check_reachable(f"ray://127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(ConfigError) as error:
            check_reachable(address)
        assert str(error.value).startswith(f"RAY_ADDRESS='{address}': the cluster cannot be reached")
    check_reachable("auto")


@pytest.mark.skipif(find_spec("ray") is None, reason="make test-ray")
def test_replicas_that_are_killed(cluster, tmp_path):
    """Two of them, with kill -9, in the middle: the results are those without Ray, byte for byte."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    lines = [{"prompt": row["prompt"], **row["sampling_params"]} for row in rows_of(NUM_LINES)]
    (inputs / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, killed, said = tmp_path / "out", [], []

    def kill(after: int) -> None:
        path = Path(out / "a.jsonl")
        while not path.exists() or path.read_bytes().count(b"\n") < after:
            time.sleep(0.05)
        pid = next(pid for pid in workers("Replica") if pid not in killed)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=lambda: [kill(after) for after in (50, 200)])
    killer.start()
    job = {"input_file": str(inputs), "output_file": str(out)}
    assert run_ray(Path(MODEL), ENGINE, {}, job, said.append, replicas=2) == 0
    killer.join()
    assert len([line for line in said if line.startswith("a replica was lost (")]) == 2
    plain = {"input_file": str(inputs / "a.jsonl"), "output_file": str(tmp_path / "plain.jsonl")}
    assert run_generate(Path(MODEL), ENGINE, {}, plain, said.append) == 0
    results = sorted((out / "a.jsonl").read_bytes().splitlines())
    assert results == sorted((tmp_path / "plain.jsonl").read_bytes().splitlines())
    assert len(results) == NUM_LINES
