"""What a job's results depend on."""

import dataclasses
import os

import pytest

from jbatch.errors import ConfigError
from jbatch.jobs import state as job_state
from jbatch.jobs.state import (
    JobState,
    check_own,
    check_state,
    fingerprint,
    keep_of_model,
    save_state,
    state_path,
)

STATE = JobState("ab" * 32, "1/1", {"config.json": "1:a"}, {"seed": 0, "dtype": "auto"}, {"stop": ("x",)})


def test_a_state_is_kept_beside_its_output(tmp_path):
    path = str(tmp_path / "out")
    save_state(path, STATE)
    assert check_state(path, STATE) == STATE
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


NUMERICS = {"device_kind": "cpu", "jax": "0.10.2", "XLA_FLAGS": None}


def test_what_is_known_with_the_model_is_kept(tmp_path):
    path = str(tmp_path / "out")
    save_state(path, STATE)
    keep_of_model(path, STATE, 64, NUMERICS)
    whole = dataclasses.replace(STATE, room=64, numerics=NUMERICS)
    assert check_state(path, STATE) == whole
    inode = os.stat(state_path(path)).st_ino
    save_state(path, whole)
    keep_of_model(path, STATE, None, NUMERICS)
    assert os.stat(state_path(path)).st_ino == inode, "it was written for nothing"
    with pytest.raises(ConfigError) as error:
        keep_of_model(path, STATE, None, NUMERICS | {"device_kind": "H200", "XLA_FLAGS": "--f", "new": 1})
    assert str(error.value).endswith(
        "was begun with another XLA_FLAGS (default, now --f); another device_kind (cpu, now H200); "
        "another new (default, now 1). Take another output, or --force to go on"
    )


@pytest.mark.parametrize("content", ["notes", "[]", '{"schema": 1}', '{"input": 1}'])
def test_a_file_of_the_user_s_is_no_state(tmp_path, content):
    path = str(tmp_path / "out")
    check_own(path)
    save_state(path, STATE)
    check_own(path)
    with open(state_path(path), "w") as file:
        file.write(content)
    with pytest.raises(ConfigError, match=r"out\.job\.json is not jbatch's: move it, or --force"):
        check_own(path)


def test_a_state_behind_a_link_is_neither_read_nor_written(tmp_path):
    path, victim = str(tmp_path / "out"), tmp_path / "thesis"
    save_state(path, STATE)
    os.rename(state_path(path), victim)
    os.symlink(victim, state_path(path))
    before = victim.read_bytes()
    for act in (lambda: check_state(path, STATE), lambda: check_own(path), lambda: save_state(path, STATE)):
        with pytest.raises(OSError, match="is a link, or no regular file"):
            act()
    assert victim.read_bytes() == before


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
