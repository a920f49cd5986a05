"""What this machine and a model directory can do, in a few lines."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from jbatch.cli.tables import echo
from jbatch.config import EngineConfig, ModelConfig
from jbatch.device.backend import describe
from jbatch.device.model import abstract_params
from jbatch.device.platform import INSTALL_HINT, NO_GPU
from jbatch.device.verdict import directory_of, kept
from jbatch.distribution import version
from jbatch.errors import JBatchError, describe_os_error
from jbatch.model_dir.config_json import load_config, load_eos_token_ids
from jbatch.model_dir.generation_json import describe_defaults, load_sampling_defaults
from jbatch.model_dir.paths import why_no_tokenizer
from jbatch.model_dir.resolve import resolve_dtype
from jbatch.text.tokenizer import load_tokenizer
from weights import WeightsError, check

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "safetensors", "tokenizers", "orbax-checkpoint")
CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")


def examine(model_dir: Path | None) -> bool:
    """Print versions, devices and a model directory's health; whether everything can be used."""
    echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    versions = (f"{name} {_version(name) or 'missing'}" for name in PACKAGES)
    echo(", ".join((f"jbatch {version()}", *versions)))
    plugins = [f"{name} {_version(name)}" for name in CUDA_PLUGINS if _version(name)]
    echo(f"CUDA plugin: {', '.join(plugins) or 'none'}")
    usable = _examine_devices()
    return (model_dir is None or _examine_model(model_dir)) and usable


def _examine_devices() -> bool:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a look is no reason to take the memory
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: JAX_PLATFORMS names a missing plugin
        reason = str(error).splitlines()[0] if str(error) else "no platform works"
        echo(f"problem: JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}: JAX does not start: {reason}")
        return False
    echo(f"devices: {', '.join(d.device_kind for d in devices)}")
    if all(device.platform == "cpu" for device in devices):
        echo(f"{NO_GPU}. For a GPU, {INSTALL_HINT}.")
    directory = directory_of(EngineConfig())
    for key, verdict in kept.read_all(directory) if directory is not None else ():
        echo(f"checked: {verdict.describe()} [{key.shape}; {key.gpus}]")
    return True


def _examine_model(model_dir: Path) -> bool:
    echo(f"\n{model_dir}")
    try:
        config = load_config(model_dir)
        like = abstract_params(config)
        echo(
            f"  config: {config.num_layers} layers, {config.num_heads} heads, {config.num_kv_heads} KV, "
            f"head_dim {config.head_dim}, context {config.context_len}, {_describe_dtype(config)}"
        )
        echo(f"  attention: {describe(config, jax.devices()[0])}")
        num_params = sum(leaf.size for leaf in like.values())
        check(model_dir, like)
        echo(f"  weights: {num_params / 1e6:.1f} M parameters, every tensor present and of the right shape")
        tokenizer = load_tokenizer(model_dir)
        if tokenizer is None:
            echo(f"  tokenizer: none; the directory {why_no_tokenizer(model_dir)}")
        else:
            echo(f"  tokenizer: {tokenizer.vocab_size} tokens")
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            echo(f"  problem: the tokenizer has more tokens than the model's {config.vocab_size}")
            return False
        echo(f"  end-of-sequence ids: {sorted(load_eos_token_ids(model_dir)) or 'none'}")
        defaults = load_sampling_defaults(model_dir, "auto")
        echo(f"  sampling defaults: {describe_defaults(defaults) or 'jbatch has its own'}")
    except (JBatchError, WeightsError, OSError) as error:
        problem = describe_os_error(error) if isinstance(error, OSError) else error
        echo(f"  problem: {problem}")
        return False
    echo("  ok")
    return True


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe_dtype(config: ModelConfig) -> str:
    """What config.json says, and what dtype="auto" makes of it here."""
    here = resolve_dtype(EngineConfig(), config, jax.devices()[0].platform).dtype
    return config.dtype if here == config.dtype else f"{config.dtype} ({here} on this CPU)"
