"""`jbatch generate --ray` on a cluster in this process: the same results as without it, whatever is lost."""

import json
import os

import pytest

from jbatch.errors import ConfigError
from jbatch.integrations.ray_data.job import Files, Size, files_of, size_of
from jbatch.integrations.ray_data.replica import Exchange
from tests.helpers import fake_job
from tests.helpers.fake_job import check_whole, run_here, write_input
from tests.helpers.local_cluster import instead_of_ray

NUM_LINES = 120
RAY = ("-i", "in", "-o", "out", "--ray", "--replicas", "2")


@pytest.fixture
def place(tmp_path):
    """A directory with a model and two files of requests."""
    fake_job.make_directory(tmp_path)
    (tmp_path / "in").mkdir()
    write_input(tmp_path / "in", NUM_LINES, "a.jsonl")
    write_input(tmp_path / "in", 40, "b.jsonl")
    return tmp_path


def check(place):
    """Both outputs hold what the same jobs write without Ray."""
    for name, num_lines in (("a.jsonl", NUM_LINES), ("b.jsonl", 40)):
        plain = f"plain {name}"
        run_here(place, "-i", f"in/{name}", "-o", plain)
        check_whole(place / "out" / name, range(1, num_lines + 1))
        results = sorted((place / "out" / name).read_bytes().splitlines())
        assert results == sorted((place / plain).read_bytes().splitlines())


def test_results_are_those_without_ray(place):
    with instead_of_ray() as clusters:
        ended = run_here(place, *RAY, "--summary", "sum.json")
    assert ended.code == 1, ended.err
    check(place)
    assert all(number > 20 for number in clusters[0].num_lines), "one replica did all"
    figures = json.loads((place / "sum.json").read_bytes())
    assert (figures["completed"], figures["failed"]) == (144, 16)
    assert figures["engine"]["output_tokens"] == figures["total_output_tokens"] > 500
    assert sorted(os.listdir(place / "out")) == [
        *("a.jsonl", "a.jsonl.job.json", "b.jsonl", "b.jsonl.job.json")
    ]


def test_it_goes_on_where_it_was(place):
    with instead_of_ray():
        run_here(place, *RAY)
    for name in ("a.jsonl", "b.jsonl"):
        path = place / "out" / name
        path.write_bytes(
            b"".join(path.read_bytes().splitlines(keepends=True)[: 30 if name[0] == "a" else 40])
        )
    with instead_of_ray() as clusters:
        ended = run_here(place, *RAY)
    assert "going on: 30 of 120 have their results" in ended.err
    assert sum(clusters[0].num_lines) == 90
    check(place)
    with instead_of_ray() as clusters:
        assert "nothing is left to do" in run_here(place, *RAY).err
    assert not clusters
    ended = run_here(place, "-i", "in/a.jsonl", "-o", "out/a.jsonl")
    assert "nothing is left to do" in ended.err, "without Ray it is the same job"


def test_a_replica_that_is_lost_twice(place):
    lost = []

    def loses(handle, given):
        if len(lost) < 2 and isinstance(given, Exchange) and handle.cluster.num_lines[handle.number] > 10:
            lost.append(len(given.results))
            return True
        return False

    with instead_of_ray(loses) as clusters:
        ended = run_here(place, *RAY)
    assert len(lost) == 2 and len(clusters[0].handles) == 4
    assert ended.err.count("a replica was lost (killed): ") == 2
    check(place)


def test_replicas_of_different_kinds(place, monkeypatch):
    """Another device may give another text: such a job is refused, and no result of the other is written."""
    load, kinds = fake_job._load, iter(["cpu", "H200"])
    monkeypatch.setattr(
        fake_job, "_load", lambda *args, **options: load(*args, numerics={"device_kind": next(kinds)})
    )
    with instead_of_ray():
        ended = run_here(place, *RAY)
    assert ended.code == 2
    assert "another device_kind (cpu, now H200)" in ended.err or "(H200, now cpu)" in ended.err


def test_replicas_that_are_always_lost(place):
    with instead_of_ray(lambda handle, given: isinstance(given, Exchange)):
        ended = run_here(place, *RAY)
    assert ended.code == 3
    assert "a replica was lost 3 times before it answered a line: killed" in ended.err


def test_a_model_that_cannot_be_loaded(place, monkeypatch):
    monkeypatch.setattr(fake_job, "_load", lambda *args, **options: 1 / 0)
    with instead_of_ray():
        ended = run_here(place, *RAY)
    assert ended.code == 3 and "division by zero" in ended.err

    def refuses(*args, **options):
        raise ConfigError("device", "cuda", "none here")

    monkeypatch.setattr(fake_job, "_load", refuses)
    with instead_of_ray():
        ended = run_here(place, *RAY)
    assert ended.code == 2 and "device='cuda': none here" in ended.err


@pytest.mark.parametrize(
    "args, message",
    [
        (("-i", "in", "-o", "out", "--replicas", "2"), "--replicas takes --ray"),
        (("-p", "x", "--ray"), "--ray takes -i and -o"),
        ((*RAY[:5], "--replicas", "0"), "replicas=0: must be an integer from 1"),
        ((*RAY[:5], "--replicas", "5"), "replicas=5: the cluster has 4 CPUs"),
        ((*RAY, "--trace", "t"), "trace='t': is of one engine: not with --ray"),
        ((*RAY, "--metrics-file", "t"), "metrics_file='t': is of one engine: not with --ray"),
        (("-i", "none", "-o", "out", "--ray"), "input_file='none': must be a file, a folder"),
        (("-i", "in", "-o", "in/a.jsonl", "--ray"), "output_file='in/a.jsonl': must be a folder with --ray"),
        (("-i", "in", "-o", "in", "--ray"), "is the same file as input=in/a.jsonl"),
        ((*RAY, "--device", "cuda"), "device='cuda': the cluster has no GPU"),
    ],
)
def test_what_makes_no_sense(place, args, message):
    before = (place / "in" / "a.jsonl").read_bytes()
    with instead_of_ray():
        ended = run_here(place, *args)
    assert ended.code == 2 and message in ended.err
    assert (place / "in" / "a.jsonl").read_bytes() == before


def test_files(place, monkeypatch):
    monkeypatch.chdir(place)
    assert files_of("in", "out") == [
        Files("in/a.jsonl", "out/a.jsonl"),
        Files("in/b.jsonl", "out/b.jsonl"),
    ]
    assert files_of("in/b.jsonl", "out") == [Files("in/b.jsonl", "out/b.jsonl")]
    assert len(files_of("i?/*.jsonl", "out")) == 2
    (place / "more").mkdir()
    (place / "more" / "a.jsonl").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"two files are called a\.jsonl"):
        files_of("*/*.jsonl", "out")


def test_the_size_of_a_cluster():
    assert size_of({"CPU": 8.0, "GPU": 4.0}, {}, None) == Size(4, 1)
    assert size_of({"CPU": 8.0, "GPU": 5.0}, {"tensor_parallel_size": 2}, None) == Size(2, 2)
    assert size_of({"CPU": 8.0, "GPU": 4.0}, {"device": "cpu"}, 3) == Size(3, 0)
    assert size_of({"CPU": 8.0}, {}, None) == Size(1, 0)
    with pytest.raises(ConfigError) as error:
        size_of({"CPU": 8.0, "GPU": 4.0}, {"tensor_parallel_size": 2}, 3)
    assert str(error.value) == "replicas=3: each takes 2 GPUs, and the cluster has 4"
