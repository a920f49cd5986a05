import pytest

from jbatch.config import EngineConfig, ModelConfig
from jbatch.model_dir.resolve import resolve_dtype


@pytest.mark.parametrize(
    ("asked", "platform", "expected"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "gpu", "bfloat16"),
        ("bfloat16", "cpu", "bfloat16"),
        ("float16", "gpu", "float16"),
    ],
)
def test_auto_is_float32_on_a_cpu(asked, platform, expected):
    in_config_json = "bfloat16" if asked == "auto" else asked
    model = ModelConfig(96, 64, 96, 2, 4, 2, 16, 256, dtype=in_config_json)
    resolved = resolve_dtype(EngineConfig(dtype=asked), model, platform)
    assert resolved.dtype == expected
    assert resolved.kv_bytes_per_token == 2 * 2 * 2 * 16 * (4 if expected == "float32" else 2)
