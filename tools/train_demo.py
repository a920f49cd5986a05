"""Train the demo model that ships in weights/demo, or measure it: a few million tokens on two CPU cores.

    python -m tools.train_demo --minutes 75 --out build/demo
    python -m tools.train_demo --evaluate

Everything drawn at random comes from --seed; the learning rate follows the clock, so that a run always
ends on time, and for that reason two runs do not give the same bits.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
import tokenizers
from optax import contrib
from tokenizers import decoders, models, pre_tokenizers, processors

import weights
from jbatch.config import ModelConfig
from jbatch.device import model as llama
from jbatch.device import rotary
from pallas_kernels import rotated
from weights.demo import tasks

CONFIG = ModelConfig(
    vocab_size=264,  # 3 special tokens and 256 bytes, padded to a multiple of 8
    embed_dim=128,
    mlp_dim=384,
    num_layers=5,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    dtype="float32",
)
SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2}
SHORT_MIX = {"add": 10, "reverse": 4, "sort": 4, "count": 3}  # how often each is drawn; a count is long
SHORT_LEN, LIST_LENS, BATCH_TOKENS = 96, (128, 256), 2304
PEAK_LR, WARMUP, HOLD = 2e-3, 0.02, 0.4  # the latter two are shares of the run
DEMO_DIR = pathlib.Path(__file__).parents[1] / "weights" / "demo"

Params = dict[str, jax.Array]
Batch = dict[str, np.ndarray]  # tokens, targets (-1: no loss), positions, segments (0: padding): [rows, len]


# --- tokenizer ---------------------------------------------------------------------------------------


def make_tokenizer() -> tokenizers.Tokenizer:
    """One token per UTF-8 byte, so that any text survives; `encode` puts <s> in front."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = SPECIAL | {symbol: len(SPECIAL) + idx for idx, symbol in enumerate(symbols)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", SPECIAL["<s>"])]
    )
    return tokenizer


@functools.cache
def _ascii_ids() -> list[int]:
    tokenizer = make_tokenizer()
    return [tokenizer.encode(chr(code), add_special_tokens=False).ids[0] for code in range(128)]


def encode(text: str) -> list[int]:
    """What the tokenizer gives for ASCII, without <s>, and faster."""
    ids = _ascii_ids()
    return [ids[ord(char)] for char in text]


# --- batches -----------------------------------------------------------------------------------------


def sequence(example: tasks.Example) -> tuple[list[int], list[int]]:
    """Inputs and targets; only the answer and the </s> after it are targets."""
    prompt, answer = [SPECIAL["<s>"], *encode(example.prompt)], encode(example.answer)
    return prompt + answer, [-1] * (len(prompt) - 1) + answer + [SPECIAL["</s>"]]


def many_queries(example: tasks.Example, num: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """A lookup with more queries appended: one list then teaches many answers instead of one."""
    inputs, targets = sequence(example)
    pairs = example.prompt.partition(" ?")[0].split(", ")
    for pair in rng.choices(pairs, k=num):  # a key may come twice, or the last ones could be guessed
        inputs += encode(f" ?{pair[0]}={pair[1]}")
        targets += [-1, -1, -1, *encode(pair[1]), SPECIAL["</s>"]]
    return inputs, targets


def short_sequence(rng: random.Random) -> tuple[list[int], list[int]]:
    """A training sequence of any task but lookup."""
    task = rng.choices(list(SHORT_MIX), list(SHORT_MIX.values()))[0]
    return sequence(_trainable(task, tasks.SIZES[task], rng))


def list_sequence(max_pairs: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """A lookup of 2 to `max_pairs` pairs, with up to 12 queries more."""
    return many_queries(_trainable("lookup", (2, max_pairs), rng), 12, rng)


def _trainable(task: str, sizes: tuple[int, int], rng: random.Random) -> tasks.Example:
    while True:
        example = tasks.draw(task, rng.randint(*sizes), rng)
        if not tasks.is_held_out(example):
            return example


def pack(sequences: list[tuple[list[int], list[int]]], rows: int, length: int, per_row: int) -> Batch:
    """Lay sequences side by side, at most `per_row` in a row; those beyond `rows` rows are dropped."""
    batch = {name: np.zeros((rows, length), np.int32) for name in ("tokens", "positions", "segments")}
    batch["targets"] = np.full((rows, length), -1, np.int32)
    row, start, segment = 0, 0, 1
    for inputs, targets in sequences:
        if start + len(inputs) > length or segment > per_row:
            row, start, segment = row + 1, 0, 1
        if row == rows:
            break
        here = (row, slice(start, start + len(inputs)))
        batch["tokens"][here], batch["targets"][here] = inputs, targets
        batch["positions"][here], batch["segments"][here] = np.arange(len(inputs)), segment
        start, segment = start + len(inputs), segment + 1
    return batch


def short_batch(rng: random.Random) -> Batch:
    """Packed rows of every task but lookup; six sequences per row are always enough to fill them."""
    rows = BATCH_TOKENS // SHORT_LEN
    return pack([short_sequence(rng) for _ in range(rows * 6)], rows, SHORT_LEN, per_row=99)


def list_batch(max_pairs: int, rng: random.Random) -> Batch:
    """Packed lookups, in the shorter rows as long as the longest list fits there."""
    length = LIST_LENS[0] if 4 * max_pairs + 64 <= LIST_LENS[0] else LIST_LENS[1]
    rows = BATCH_TOKENS // length
    return pack([list_sequence(max_pairs, rng) for _ in range(rows * 6)], rows, length, per_row=99)


# --- model -------------------------------------------------------------------------------------------


def init_params(seed: int) -> Params:
    """Normal, scaled by fan-in; what writes to the residual stream starts smaller."""
    keys = iter(jax.random.split(jax.random.key(seed), 999))
    params = {}
    for name, leaf in llama.abstract_params(CONFIG).items():
        fan_in = {"o": CONFIG.num_heads * CONFIG.head_dim, "down": CONFIG.mlp_dim}.get(name.rsplit(".")[-1])
        std = CONFIG.embed_dim**-0.5 if fan_in is None else (2 * CONFIG.num_layers * fan_in) ** -0.5
        normal = jax.random.normal(next(keys), leaf.shape, leaf.dtype)
        params[name] = jnp.ones(leaf.shape, leaf.dtype) if name.endswith("scale") else std * normal
    return _look_back(params)


def _look_back(params: Params) -> Params:
    """Let the first two heads start out attending one and two tokens back.

    A lookup matches the token before "=" with the token before each value. Left to chance, the heads that
    fetch those tokens form only after many more minutes; all else about the circuit is learnt."""
    half, fast = CONFIG.head_dim // 2, 6  # the fastest pairs tell near places apart
    embedding = params["embedding"].at[:, 0].set(1.0)  # one coordinate that every token shares
    qkv = params["layers.0.attention.qkv"].at[0, :3].set(0.0)
    for head, distance in enumerate((1, 2)):  # a score peaks where the angles of q and k cancel
        angles = rotary.frequencies(CONFIG.rope, CONFIG.head_dim)[:fast] * distance
        qkv = qkv.at[0, head, :fast, 0].set(jnp.cos(angles))
        qkv = qkv.at[0, head, half : half + fast, 0].set(-jnp.sin(angles))
    qkv = qkv.at[0, 2, :fast, 0].set(0.8)
    return params | {"embedding": embedding, "layers.0.attention.qkv": qkv}


def forward(params: Params, batch: Batch) -> jax.Array:
    """Logits [rows, len, vocab]; attention is dense, causal and stays inside a segment."""
    segments, length = batch["segments"], batch["segments"].shape[1]
    mask = (segments[:, :, None] == segments[:, None, :]) & jnp.tri(length, dtype=bool)

    def attend(layer_idx: int, qkv: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        q, k, v = rotated(qkv, cos, sin)
        grouped = q.reshape(*q.shape[:2], CONFIG.num_kv_heads, CONFIG.group, CONFIG.head_dim)
        scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k) * CONFIG.head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e9), axis=-1)
        return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(q.shape)

    names = llama.abstract_params(CONFIG)
    model = llama.build(CONFIG, tuple(params[name] for name in names))
    return model.logits(model(jnp.asarray(batch["tokens"]), jnp.asarray(batch["positions"]), attend))


def loss(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and share of right tokens, both over the answers only."""
    logits, targets = forward(params, batch), batch["targets"]
    counted = targets >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    right = (logits.argmax(-1) == targets) & counted
    return (losses * counted).sum() / counted.sum(), right.sum() / counted.sum()


# --- optimiser ---------------------------------------------------------------------------------------


def _muon_axes(name: str) -> contrib.MuonDimensionNumbers | None:
    axes = {  # (in, out); the axes left over, as the heads of qkv, are matrices of their own
        "qkv": (3, 2),
        "o": ((1, 2), 0),
        "gate_up": (2, 1),
        "down": (1, 0),
    }.get(name.rsplit(".")[-1])
    return None if axes is None else contrib.MuonDimensionNumbers(*axes)


def make_optimizer() -> optax.GradientTransformation:
    """Muon (Jordan 2024) for matrices, Adam for the rest; at rate 1, because the clock sets the rate."""
    return contrib.muon(
        1.0,
        weight_decay=0.02,
        adam_b2=0.99,
        consistent_rms=0.2,  # makes one learning rate fit both
        muon_weight_dimension_numbers=lambda params: {name: _muon_axes(name) for name in params},
    )


@functools.partial(jax.jit, donate_argnums=(0, 1, 2))
def step(
    params: Params, average: Params, state: optax.OptState, batch: Batch, rate: float, keep: float
) -> tuple[Params, Params, optax.OptState, jax.Array, jax.Array]:
    """One update; `average` is the moving average of the weights, which is what is saved."""
    (value, right), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
    updates, state = make_optimizer().update(grads, state, params)
    params = {name: param + rate * updates[name] for name, param in params.items()}
    average = {name: keep * average[name] + (1 - keep) * param for name, param in params.items()}
    return params, average, state, value, right


def learning_rate(progress: float) -> float:
    """Up, level, then linearly to zero."""
    return PEAK_LR * min(1.0, progress / WARMUP, (1 - progress) / (1 - HOLD))


# --- files -------------------------------------------------------------------------------------------


def save(params: Params, out: pathlib.Path) -> None:
    """The Hugging Face folder; the weights appear in one piece."""
    out.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(out / "tokenizer.json"))
    ends = {f"{name}_token_id": SPECIAL[token] for name, token in _special_names().items()}
    _write_json(out / "config.json", hf_config() | ends)
    _write_json(out / "generation_config.json", {"do_sample": False} | ends)
    _write_json(out / "tokenizer_config.json", tokenizer_config())
    tensors = weights.to_hugging_face({name: np.asarray(param) for name, param in params.items()})
    safetensors.numpy.save_file(tensors, out / "model.tmp", metadata={"format": "pt"})
    os.replace(out / "model.tmp", out / "model.safetensors")


def hf_config() -> dict:
    """config.json as transformers spells it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": CONFIG.embed_dim,
        "intermediate_size": CONFIG.mlp_dim,
        "num_hidden_layers": CONFIG.num_layers,
        "num_attention_heads": CONFIG.num_heads,
        "num_key_value_heads": CONFIG.num_kv_heads,
        "head_dim": CONFIG.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": CONFIG.rms_norm_eps,
        "rope_theta": CONFIG.rope.theta,
        "max_position_embeddings": CONFIG.max_position_embeddings,
        "vocab_size": CONFIG.vocab_size,
        "attention_bias": False,
        "mlp_bias": CONFIG.mlp_bias,
        "tie_word_embeddings": CONFIG.tie_word_embeddings,
        "torch_dtype": CONFIG.dtype,
    }


def tokenizer_config() -> dict:
    """tokenizer_config.json as transformers' PreTrainedTokenizerFast reads it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONFIG.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": token for name, token in _special_names().items()},
    }


def _special_names() -> dict[str, str]:
    return {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


# --- measuring ---------------------------------------------------------------------------------------


@jax.jit
def _all_right(params: Params, batch: Batch) -> jax.Array:
    right = forward(params, batch).argmax(-1) == batch["targets"]
    return (right | (batch["targets"] < 0)).all(axis=1)


def evaluate(params: Params, examples: list[tasks.Example], rows: int = 20) -> dict[str, float]:
    """Share of right answers per task.

    The likeliest token is right at every place of the answer, </s> included, exactly if greedy decoding
    gives the answer: one forward pass over prompt and answer tells."""
    right: dict[str, list[bool]] = {task: [] for task in tasks.SIZES}
    for task in tasks.SIZES:
        chosen = [example for example in examples if example.task == task]
        length = LIST_LENS[-1] if task == "lookup" else SHORT_LEN
        for start in range(0, len(chosen), rows):
            part = [sequence(example) for example in chosen[start : start + rows]]
            batch = pack(part, rows, length, per_row=1)
            right[task] += np.asarray(_all_right(params, batch))[: len(part)].tolist()
    return {task: float(np.mean(answers)) for task, answers in right.items()}


def report(shares: dict[str, float], examples: list[tasks.Example]) -> str:
    """One line: the share of each task and of all examples."""
    counts = {task: sum(example.task == task for example in examples) for task in shares}
    overall = sum(shares[task] * counts[task] for task in shares) / len(examples)
    return "  ".join(f"{task} {share:.2%}" for task, share in shares.items()) + f"  overall {overall:.2%}"


# --- training ----------------------------------------------------------------------------------------


def load(folder: pathlib.Path) -> Params:
    """The weights that `save` wrote."""
    return weights.load(folder, llama.abstract_params(CONFIG))


def train(minutes: float, seed: int, out: pathlib.Path, resume: bool) -> None:
    """Batches of short tasks and of lookups; the lists grow as the answers come right, then get rarer."""
    rng, params = random.Random(seed), load(out) if resume else init_params(seed)
    longest = tasks.SIZES["lookup"][1]
    max_pairs = longest if resume else 8
    print(f"{sum(param.size for param in params.values())} parameters", flush=True)
    average, state = jax.tree.map(jnp.copy, params), make_optimizer().init(params)
    sample = tasks.demo_prompts(400, seed + 1)
    begin, next_report, steps, short_loss, list_loss = time.time(), 60.0, 0, 0.0, 0.0
    while (elapsed := time.time() - begin) < 60 * minutes:
        is_list = steps % (2 if max_pairs < longest else 6) == 1
        batch = list_batch(max_pairs, rng) if is_list else short_batch(rng)
        rate, keep = learning_rate(elapsed / (60 * minutes)), min(0.998, steps / (steps + 10))
        params, average, state, value, right = step(params, average, state, batch, rate, keep)
        steps += 1
        if is_list:
            list_loss = 0.9 * list_loss + 0.1 * float(value)
            if right > 0.97:
                max_pairs = min(max_pairs + 1, longest)
        else:
            short_loss = 0.99 * short_loss + 0.01 * float(value)
        if elapsed > next_report:
            shares = report(evaluate(average, sample), sample)
            print(
                f"{elapsed / 60:5.1f} min  step {steps}  loss {short_loss:.4f} {list_loss:.4f}"
                f"  pairs {max_pairs}  {shares}",
                flush=True,
            )
            save(average, out)
            next_report += 60.0 if elapsed < 600 else 180.0
    save(average, out)
    print(f"{steps} steps in {minutes} minutes: {report(evaluate(average, sample), sample)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=75.0, help="how long to train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=DEMO_DIR, help="folder to write or measure")
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out")
    parser.add_argument("--evaluate", action="store_true", help="measure on 2,000 held-out prompts instead")
    args = parser.parse_args()
    if not args.evaluate:
        return train(args.minutes, args.seed, args.out, args.resume)
    examples = tasks.demo_prompts(2000, args.seed)
    print(report(evaluate(load(args.out), examples), examples))


if __name__ == "__main__":
    main()
