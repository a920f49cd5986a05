"""What a job's results depend on."""

import pytest

from jbatch.errors import ConfigError
from jbatch.jobs import state as job_state
from jbatch.jobs.state import JobState, check_state, fingerprint, save_state, state_path

STATE = JobState("ab" * 32, "1/1", {"config.json": "1:a"}, {"seed": 0, "dtype": "auto"}, {"stop": ("x",)})


def test_a_state_is_kept_beside_its_output(tmp_path):
    path = str(tmp_path / "out")
    save_state(path, STATE)
    check_state(path, STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["out.job.json"]


def test_every_change_is_named(tmp_path):
    path = str(tmp_path / "out")
    save_state(path, STATE)
    model = {f"{name}.safetensors": "2:b" for name in "abcde"}
    other = JobState("cd" * 32, "1/2", model, {"seed": 1, "dtype": "auto"}, {"top_k": 4})
    with pytest.raises(ConfigError) as error:
        check_state(path, other)
    assert str(error.value).endswith(
        "was begun with another input (abababababab, now cdcdcdcdcdcd); another shard (1/1, now 1/2); "
        "another model (a.safetensors, b.safetensors, c.safetensors and 3 more); another seed (0, now 1); "
        "another stop (['x'], now default); another top_k (default, now 4). "
        "Take another output, or --force to go on"
    )


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"schema": 2}', b"[" * 99999])
def test_a_state_that_cannot_be_read_is_none(tmp_path, content):
    path = str(tmp_path / "out")
    with open(state_path(path), "wb") as file:
        file.write(content)
    with pytest.raises(ConfigError, match=r"holds results, and out\.job\.json does not say of what job"):
        check_state(path, STATE)


@pytest.mark.parametrize(
    "name, noticed", [("config.json", True), ("m.safetensors", True), ("README.md", False)]
)
def test_any_changed_byte_of_a_small_file_is_noticed(tmp_path, name, noticed):
    (tmp_path / "m.safetensors").write_bytes(bytes(1000))
    (tmp_path / name).write_bytes(b"{}" + bytes(1000))
    before = fingerprint(tmp_path)
    (tmp_path / name).write_bytes(b"{}" + bytes(999) + b"\1")
    assert (fingerprint(tmp_path) != before) == noticed


def test_large_files_are_sampled_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(job_state, "WHOLE_BELOW", 1000)
    monkeypatch.setattr(job_state, "NUM_SAMPLES", 3)
    monkeypatch.setattr(job_state, "SAMPLE_BYTES", 10)
    path = tmp_path / "m.safetensors"
    path.write_bytes(bytes(2010))
    before = fingerprint(tmp_path)
    for at, noticed in (
        (0, True),
        (9, True),
        (10, False),
        (1000, True),
        (1009, True),
        (2000, True),
        (2009, True),
    ):
        content = bytearray(2010)
        content[at] = 1
        path.write_bytes(content)
        assert (fingerprint(tmp_path) != before) == noticed, at
    path.write_bytes(bytes(2011))
    assert fingerprint(tmp_path) != before, "its size"
