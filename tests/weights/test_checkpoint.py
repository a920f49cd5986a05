from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import weights
from jbatch.device.model import abstract_params
from jbatch.model_dir.config_json import load_config
from tests.helpers.hf_checkpoint import tiny, write_checkpoint
from weights import checkpoint, manifest


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A converted directory, with a generation config and a tokenizer; not to be changed."""
    root = tmp_path_factory.mktemp("converted")
    write_checkpoint(root / "hf", tiny(torch_dtype="bfloat16"))
    (root / "hf" / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    (root / "hf" / "tokenizer.json").write_text("{}")
    (root / "hf" / "modeling_evil.py").write_text("raise SystemExit")
    weights.save(root / "out", load(root / "hf"), root / "hf")
    return root / "out"


@pytest.fixture
def copied(converted, tmp_path) -> Path:
    return shutil.copytree(converted, tmp_path / "copy")


def load(model_dir: Path) -> dict[str, jax.Array]:
    return weights.load(model_dir, abstract_params(load_config(model_dir)))


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_round_trip(converted):
    assert weights.is_checkpoint(converted) and not weights.is_checkpoint(converted.parent / "hf")
    expected, restored = load(converted.parent / "hf"), load(converted)
    assert list(restored) == list(expected)
    for name, value in expected.items():
        assert restored[name].dtype == value.dtype == jnp.bfloat16
        assert np.array_equal(np.asarray(restored[name]), np.asarray(value)), name


def test_config_and_tokenizer_come_along_and_nothing_else(converted):
    names = {path.name for path in converted.iterdir()}
    assert names == {"config.json", "generation_config.json", "tokenizer.json", "manifest.json", "params"}
    listed = json.loads((converted / "manifest.json").read_text())["files"]
    assert set(listed) == {p.relative_to(converted).as_posix() for p in files(converted)} - {"manifest.json"}
    assert not list(converted.parent.glob(".*"))


def test_another_dtype_is_cast(converted):
    like = abstract_params(load_config(converted))
    like = {name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for name, leaf in like.items()}
    wide, narrow = weights.load(converted, like), load(converted)
    assert all(leaf.dtype == jnp.float32 for leaf in wide.values())
    assert np.array_equal(np.asarray(wide["embedding"]), np.asarray(narrow["embedding"].astype(jnp.float32)))


def test_shardings(converted):
    like = abstract_params(load_config(converted))
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((1,), ("model",)), jax.sharding.PartitionSpec("model")
    )
    assert weights.load(converted, like, {"embedding": sharding})["embedding"].sharding == sharding


def test_parameters_that_do_not_fit_are_named(converted):
    like = abstract_params(load_config(converted))
    wrong = dict(like)
    wrong["norm.scale"] = jax.ShapeDtypeStruct((33,), jnp.bfloat16)
    wrong["layers.2.mlp.down"] = wrong.pop("layers.1.mlp.down")
    with pytest.raises(weights.WeightsError) as error:
        weights.load(converted, wrong)
    for words in (
        "norm.scale has shape [32], expected [33]",
        "layers.2.mlp.down is missing",
        "layers.1.mlp.down is unexpected",
    ):
        assert words in str(error.value)


def test_every_single_bit_flip_is_detected(copied, monkeypatch):
    monkeypatch.setattr(checkpoint, "_checkpointer", lambda: pytest.fail("read damaged weights"))
    like = abstract_params(load_config(copied))
    rng = random.Random(0)
    for path in files(copied):
        data = bytearray(path.read_bytes())
        for _ in range(40):
            bit = rng.randrange(8 * len(data)) if data else 0
            damaged = bytearray(data or b"\x00")
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(weights.WeightsError) as error:
                weights.load(copied, like)
            assert path.name in str(error.value) or path.name == "manifest.json"
        path.write_bytes(data)
    manifest.verify(copied)


def test_missing_and_extra_files_are_named(copied):
    like = abstract_params(load_config(copied))
    for path in files(copied):
        if path.name == "manifest.json":
            continue
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(weights.WeightsError, match=f"{path.name} is missing"):
            weights.load(copied, like)
        path.write_bytes(data)
    (copied / "params" / "surprise").write_text("x")
    with pytest.raises(weights.WeightsError, match=r"params/surprise is not in manifest\.json"):
        weights.load(copied, like)
    (copied / "params" / "surprise").unlink()
    (copied / "params" / "link").symlink_to("/etc/passwd")
    with pytest.raises(weights.WeightsError, match="params/link is not a regular file"):
        weights.load(copied, like)


def test_a_file_replaced_by_a_link_is_refused(copied, tmp_path):
    (copied / "config.json").rename(tmp_path / "elsewhere.json")
    (copied / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(weights.WeightsError, match=r"config\.json is not a regular file"):
        load(copied)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"[" * 10**5, b'{"schema": 1, "schema": 1}'])
def test_a_broken_manifest(copied, content):
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(weights.WeightsError, match=r"manifest\.json"):
        load(copied)


def test_a_manifest_of_another_schema(copied, monkeypatch):
    monkeypatch.setattr(manifest, "SCHEMA", 2)
    with pytest.raises(weights.WeightsError, match="schema 1, this version reads 2"):
        load(copied)


def test_an_existing_target_is_left_alone(converted, tmp_path):
    params = load(converted)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(weights.WeightsError, match="not an empty directory"):
        weights.save(tmp_path / "out", params, converted)
    with pytest.raises(weights.WeightsError, match="not an empty directory"):
        weights.save(tmp_path / "out" / "precious", params, converted)
    assert (tmp_path / "out" / "precious").read_text() == "x" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty").chmod(0o750)
    weights.save(tmp_path / "empty", params, converted)
    assert (tmp_path / "empty").stat().st_mode & 0o7777 == 0o750
    weights.save(tmp_path / "new" / "nested", params, converted)
    assert files(tmp_path / "empty") and weights.is_checkpoint(tmp_path / "new" / "nested")


def test_a_full_disk_is_an_error_of_the_system_that_names_the_target(converted, tmp_path, monkeypatch):
    """Orbax has it in the text of a ValueError; any other of those stays what it is."""
    params, text = load(converted), ["RESOURCE_EXHAUSTED: Failed to write: No space [os_error_code='28']"]

    def fail(*_):
        raise ValueError(*text)

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", fail)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/out'"):
        weights.save(tmp_path / "out", params, converted)
    text[:] = ["another"]
    with pytest.raises(ValueError, match="another"):
        weights.save(tmp_path / "out", params, converted)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_nothing(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        weights.save(tmp_path / "out", load(converted), converted)
    assert not list(tmp_path.iterdir())
