"""How a model lies on several devices: the one table of which axis of each parameter is cut.

Each rank has a part of the heads, of the MLP and of the vocabulary. So what follows the attention and the
MLP is a sum over ranks, and the logits are all ranks' joined. A parameter lies there as all ranks' parts,
one behind the other. That is the parameter itself, but for two:

- The vocabulary is padded with rows of zeros, where it is no multiple of the number of ranks.
- Where there are more ranks than KV heads, a KV head is on several ranks, each with a part of its queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jbatch.config import ModelConfig
from jbatch.device.model import abstract_params
from jbatch.device.ranks import AXIS
from jbatch.device.state import EngineState
from weights.hugging_face import Form

# By the end of a parameter's name: see `model` for its axes. What is not named is whole on every rank.
_CUT = {
    "embedding": P(AXIS),  # by vocabulary
    "attention.qkv": P(AXIS),  # by KV head, with its queries
    "attention.qkv_bias": P(AXIS),
    "attention.o": P(None, AXIS),  # by head: the input
    "mlp.gate_up": P(None, AXIS),  # by output, of gate and up alike
    "mlp.gate_up_bias": P(None, AXIS),
    "mlp.down": P(None, AXIS),  # by input
}
WHOLE = P()
STATE = EngineState(rows=WHOLE, block_tables=WHOLE, kv_pages=P(None, None, AXIS))  # type: ignore[arg-type]
PAGES_READ = P(None, None, None, AXIS)  # of all layers


def spec_of(name: str) -> P:
    """How a parameter is cut."""
    return next((spec for end, spec in _CUT.items() if name.endswith(end)), WHOLE)


def mesh_of(devices: Sequence[jax.Device | Any], num_ranks: int) -> Mesh | AbstractMesh | None:
    """Of the devices that compute a step together, an abstract one where fewer are given; None for one."""
    if num_ranks == 1:
        return None
    if len(devices) < num_ranks:
        return AbstractMesh((num_ranks,), (AXIS,))
    return Mesh(np.array(devices), (AXIS,))


def joined(leaf: jax.ShapeDtypeStruct, spec: P, mesh: Mesh | AbstractMesh) -> jax.ShapeDtypeStruct:
    """All ranks' arrays as one, each of which is like `leaf`."""
    shape = list(leaf.shape)
    for axis, cut in enumerate(spec):
        shape[axis] *= mesh.size if cut == AXIS else 1
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype, sharding=NamedSharding(mesh, spec))


def forms_of(config: ModelConfig, num_ranks: int) -> dict[str, Form]:
    """For each parameter that lies on the devices in another form than its own: how that is made."""
    padding = -config.vocab_size % num_ranks
    copies = max(1, num_ranks // config.num_kv_heads)

    def padded(rows: np.ndarray) -> np.ndarray:
        return np.pad(rows, ((0, padding), (0, 0)))

    def repeated(qkv: np.ndarray) -> np.ndarray:
        q, kv = qkv[:, : config.group], qkv[:, config.group :]
        q = q.reshape(num_ranks, config.group // copies, *qkv.shape[2:])
        return np.concatenate([q, np.repeat(kv, copies, axis=0)], axis=1)

    forms: dict[str, Form] = {}
    for name in abstract_params(config):
        if name.endswith("embedding") and padding:
            forms[name] = padded
        elif name.endswith(("attention.qkv", "attention.qkv_bias")) and copies > 1:
            forms[name] = repeated
    return forms


def original(name: str, stored: jax.Array, config: ModelConfig, num_ranks: int) -> jax.Array:
    """A parameter, from the form in which it lies on the devices."""
    copies = max(1, num_ranks // config.num_kv_heads)
    if name.endswith("embedding"):
        return stored[: config.vocab_size]
    if name.endswith(("attention.qkv", "attention.qkv_bias")) and copies > 1:
        q, kv = stored[:, :-2], stored[::copies, -2:]
        q = q.reshape(config.num_kv_heads, config.group, *stored.shape[2:])
        return jax.numpy.concatenate([q, kv], axis=1)
    return stored
