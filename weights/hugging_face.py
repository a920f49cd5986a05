"""Parameters from a Hugging Face directory's safetensors: located and checked first, then read one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from weights import names, strict_json
from weights.errors import WeightsError, raise_if_any
from weights.safetensors_file import DTYPES, FLOATS, Tensor, aligned_empty, read, read_header, same_bytes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What may be there instead of safetensors, and what to do; the first that is there counts.
_UNREAD = {
    (".bin", ".pt", ".pth", ".ckpt"): f"may run code when read, so it never is: convert it to {SINGLE} first",
    (".gguf", ".ggml"): "is GGUF, which is not read: take the model's safetensors",
    (
        "adapter_model.safetensors",
    ): "is a LoRA adapter: merge it into its base model (peft: merge_and_unload)",
    ("consolidated.safetensors",): f"has Mistral's own names: take the repository's {SINGLE} or its shards",
    (".msgpack", ".h5", ".npz", ".onnx"): f"is not read: take the model's {SINGLE} or its shards",
    (
        ".safetensors",
    ): f"is not called {SINGLE}, nor is there an index: rename it where it is the whole model",
}
# Tensors of GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes, HQQ and MLX beside a packed or scaled weight.
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale(_inv)?|weight_zero_point|SCB|"
    r"weight\.(absmax|quant_map|quant_state\..*)|W_q|scales|biases)$"
)
_TAKE_FLOATS = "take the model's bfloat16 or float16 weights"
_WEIGHTS_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors", re.ASCII)

Form = Callable[[np.ndarray], np.ndarray]


def load_hugging_face(
    model_dir: str | Path,
    like: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, Any] | None = None,
    forms: Mapping[str, Form] | None = None,
) -> dict[str, jax.Array]:
    """The parameters named by `like`, in its order, shapes and dtypes, on the device.

    Every header is checked before the first tensor is read; then one parameter at a time is assembled on
    the host and moved, so the host holds one parameter and one of its parts above the model; or one and its
    form, where there is one.

    Args:
      like: parameter name -> shape and dtype, and the sharding where `shardings` names none.
      shardings: parameter name -> sharding.
      forms: parameter name -> a function from the parameter, on the host, to the form that is kept of it.
    Raises:
      WeightsError: files that are missing, damaged or outside the directory; tensors that are missing,
        unexpected, there twice, of another shape, or not floating point. It names them.
    """
    tensors = check_hugging_face(model_dir, like)
    table = {name: names.parts(name, leaf.shape) for name, leaf in like.items()}
    shardings, forms = shardings or {}, forms or {}
    params = {}
    for name, leaf in like.items():
        host = _assemble(leaf, table[name], tensors)
        if name in forms:
            host = forms[name](host)
        sharding = shardings.get(name, leaf.sharding)
        params[name] = jax.block_until_ready(jax.device_put(host, sharding))  # before the next is read
        del host
    return params


def check_hugging_face(model_dir: str | Path, like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Tensor]:
    """Every tensor of the directory by name, from its headers alone. Raises WeightsError as loading would."""
    tensors = locate(Path(model_dir))
    table = {name: names.parts(name, leaf.shape) for name, leaf in like.items()}
    raise_if_any(model_dir, other_names(tensors, table) or _problems(tensors, table))
    return tensors


def locate(model_dir: Path) -> dict[str, Tensor]:
    """Every tensor of the directory by name, from the index's shards or the single file. Raises
    WeightsError for anything ambiguous: a stray shard, a tensor in two shards, an index that is wrong."""
    index = model_dir / INDEX
    weight_map = _weight_map(index) if index.exists() else None
    files = {SINGLE} if weight_map is None else set(weight_map.values())
    stray = sorted(p.name for p in model_dir.glob("*.safetensors") if _WEIGHTS_FILE.fullmatch(p.name))
    stray = [name for name in stray if name not in files]
    if weight_map is None and not (model_dir / SINGLE).exists():
        raise WeightsError(_nothing_found(model_dir, stray))
    raise_if_any(
        model_dir, [f"{name} is not among the files to be read ({sorted(files)[0]}, ...)" for name in stray]
    )
    tensors: dict[str, Tensor] = {}
    problems = []
    for file in sorted(files):
        for name, tensor in read_header(_inside(model_dir, file)).items():
            if name in tensors:
                problems.append(f"tensor {name[:80]!r} is in both {tensors[name].path.name} and {file}")
            elif weight_map is not None and weight_map.get(name) != file:
                problems.append(f"tensor {name[:80]!r} is in {file}, but {INDEX} says {weight_map.get(name)}")
            tensors[name] = tensor
    for name, file in (weight_map or {}).items():
        if name not in tensors:
            problems.append(f"{file} lacks tensor {name[:80]!r}")
    raise_if_any(model_dir, problems)
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = strict_json.read(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index.name}: weight_map must be an object that names the shards")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file, re.ASCII):
            reason = "not the name of a safetensors file in the same directory"
            raise WeightsError(f"{index.name}: tensor {name[:80]!r} is in {str(file)[:80]!r}, {reason}")
    return weight_map


def _inside(model_dir: Path, file: str) -> Path:
    """The file, refused where a link leads out of the directory; a hub cache's own blobs are allowed."""
    try:
        home, target = model_dir.resolve(), (model_dir / file).resolve()
        is_file = target.is_file()
    except (OSError, RuntimeError) as error:  # a name too long; links in a circle
        reason = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise WeightsError(f"{file[:80]}: cannot be read from {model_dir}: {reason}") from None
    allowed = [home]
    if home.parent.name == "snapshots":  # models--NAME/snapshots/REVISION/FILE -> ../../blobs/HASH
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise WeightsError(f"{file[:80]}: a link that leaves the directory {model_dir}")
    if not is_file:
        raise WeightsError(f"{file[:80]}: missing from {model_dir}")
    return model_dir / file


def _nothing_found(model_dir: Path, shards: list[str]) -> str:
    if not model_dir.is_dir():
        return f"{model_dir}: no such directory"
    if shards:
        return f"{model_dir}: {INDEX} is missing, though there are shards ({shards[0]})"
    names = sorted(path.name for path in model_dir.iterdir())
    for suffixes, hint in _UNREAD.items():
        if (found := next((name for name in names if name.endswith(suffixes)), None)) is not None:
            return f"{model_dir}: {found} {hint}"
    return f"{model_dir}: neither {SINGLE} nor {INDEX} is there"


def _problems(tensors: Mapping[str, Tensor], table: Mapping[str, list[names.Part]]) -> list[str]:
    wanted = {part.name: part.shape for parts in table.values() for part in parts}
    problems = []
    for name, shape in wanted.items():
        tensor = tensors.get(name)
        if tensor is None:
            tied = " (lm_head is absent, but the config does not tie it to the embedding)"
            problems.append(f"tensor {name} is missing{tied if name == 'lm_head.weight' else ''}")
        elif tensor.shape != shape:
            problems.append(f"tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        elif tensor.dtype not in FLOATS:
            problems.append(f"tensor {name} has dtype {tensor.dtype}; quantised weights are not supported")
    for name in sorted(tensors.keys() - wanted.keys()):
        if not names.IGNORED.fullmatch(name) and not _is_tied_copy(name, tensors, problems):
            problems.append(f"tensor {name[:80]!r} is unexpected")
    return problems


def other_names(tensors: Mapping[str, Any], table: Mapping[str, list[names.Part]]) -> list[str]:
    """One problem in place of hundreds, where the tensors of a whole model go by other names."""
    wanted = {part.name for parts in table.values() for part in parts}
    quantised = next((name for name in sorted(tensors) if _QUANTISED.search(name)), None)
    if quantised is not None:
        return [f"tensor {quantised[:80]!r} is of quantised weights, which are not read: {_TAKE_FLOATS}"]
    lora = next((name for name in sorted(tensors) if ".lora_" in name), None)
    if lora is not None:
        return [f"tensor {lora[:80]!r} is of a LoRA adapter: merge it into its base model"]
    first = "model.embed_tokens.weight"
    if first not in wanted or first in tensors:
        return []
    prefixed = next((name for name in sorted(tensors) if name.endswith("embed_tokens.weight")), None)
    if prefixed is None:
        return []
    prefix = prefixed.removesuffix("embed_tokens.weight")
    found = f"begin with {prefix!r}" if prefix else "have no prefix"
    return [
        f"tensors {found}, not with 'model.' ({prefixed[:80]!r} is there, {first!r} is not): load them with "
        "transformers' AutoModelForCausalLM and save_pretrained, or rename them"
    ]


def _is_tied_copy(name: str, tensors: Mapping[str, Tensor], problems: list[str]) -> bool:
    embedding = tensors.get("model.embed_tokens.weight")
    if name != "lm_head.weight" or embedding is None:
        return False
    if not same_bytes(embedding, tensors[name]):
        problems.append("the config ties lm_head.weight to model.embed_tokens.weight, but the two differ")
    return True


def _assemble(
    leaf: jax.ShapeDtypeStruct, parts: list[names.Part], tensors: Mapping[str, Tensor]
) -> np.ndarray:
    """Read and cast one parameter, part by part."""
    if len(parts) == 1 and DTYPES[tensors[parts[0].name].dtype] == leaf.dtype:
        return read(tensors[parts[0].name]).reshape(leaf.shape)
    host = aligned_empty(leaf.shape, np.dtype(leaf.dtype))
    for part in parts:
        target = host[part.where]
        with np.errstate(over="ignore"):  # checked below
            target[...] = read(tensors[part.name]).reshape(target.shape)
        if leaf.dtype == np.float16 and not np.isfinite(target).all():
            raise WeightsError(f"tensor {part.name} exceeds float16's range: use bfloat16 or float32")
    return host
