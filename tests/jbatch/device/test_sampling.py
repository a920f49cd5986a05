"""Transforms of logits on small distributions worked by hand, and against plain NumPy with a sort."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbatch.device import sampling
from jbatch.device.process import stop_ids
from jbatch.device.state import Rows
from jbatch.sampler import Sampler
from jbatch.seam.rows import COLUMNS, FLOAT_COLUMNS, MIN_TOP_P, RowSetup, row_columns

INF = np.inf


def setup(num_rows=1, *, stop_ids=(), **fields):
    """Rows of device state, temperature 1; a list gives each row its own value."""
    rows = np.tile(row_columns(RowSetup(temperature=1.0, stop_ids=tuple(stop_ids))), (num_rows, 1))
    for name, value in fields.items():
        dtype = np.float32 if name in FLOAT_COLUMNS else np.uint32
        rows[:, COLUMNS[name]] = np.asarray(value, dtype).view(np.int32)
    return jnp.asarray(rows)


keep_likely = jax.jit(sampling.keep_likely)


@functools.partial(jax.jit, static_argnames="sampler")
def draw(logits, columns, positions, *, sampler):
    """Of rows that are all live."""
    live = jnp.ones(len(logits), bool)
    return sampling.draw(logits, Rows(columns), positions, live, sampler=sampler)[0]


def rule_out(logits, columns):
    return stop_ids.rule_out(logits, Rows(columns))


def kept(probs, **options):
    """Indices that survive, and that the others became -inf and these stayed as they were."""
    logits = jnp.log(jnp.asarray([probs], jnp.float32))
    result = np.asarray(keep_likely(logits, setup(**options)))[0]
    survive = result > -INF
    np.testing.assert_array_equal(result[survive], np.asarray(logits)[0][survive])
    return np.flatnonzero(survive).tolist()


# By hand.

FOUR = [0.1, 0.4, 0.2, 0.3]


@pytest.mark.parametrize(
    "options, survivors",
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 4}, [0, 1, 2, 3]),
        ({"top_k": 2**31 - 1}, [0, 1, 2, 3]),
        ({"top_p": MIN_TOP_P}, [1]),
        ({"top_p": 1e-6}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 2, 3]),
        ({"top_p": 0.91}, [0, 1, 2, 3]),
        ({"min_p": 0.24}, [0, 1, 2, 3]),  # of 0.4: 0.096
        ({"min_p": 0.26}, [1, 2, 3]),  # 0.104
        ({"min_p": 0.6}, [1, 3]),  # 0.24
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.75}, [1, 3]),  # of the three, 0.4 + 0.3 is 7/9 = 0.78
        ({"top_k": 3, "top_p": 0.79}, [1, 2, 3]),
        ({"min_p": 0.6, "top_p": 0.56}, [1]),  # of the two, 0.4 is 4/7 = 0.57
        ({"min_p": 0.6, "top_p": 0.58}, [1, 3]),
        ({"min_p": 0.6, "top_k": 1}, [1]),
    ],
)
def test_four_tokens_by_hand(options, survivors):
    assert kept(FOUR, **options) == survivors


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.9}])
def test_ties_at_the_threshold_are_kept(options):
    assert kept([0.3, 0.1, 0.3, 0.3], **options) == [0, 2, 3]


def test_each_row_has_its_own_parameters():
    logits = jnp.log(jnp.asarray([FOUR] * 4, jnp.float32))
    rows = setup(4, top_k=[2, 0, 0, 0], top_p=[1.0, 0.39, 1.0, 1.0], min_p=[0, 0, 0.26, 0])
    survive = np.asarray(keep_likely(logits, rows)) > -INF
    assert [np.flatnonzero(row).tolist() for row in survive] == [[1, 3], [1], [1, 2, 3], [0, 1, 2, 3]]


def test_stop_ids_are_banned_until_min_tokens():
    logits = jnp.zeros((2, 5))
    banned = np.asarray(rule_out(logits, setup(2, stop_ids=(1, 4, 77), min_left=[1, 0])))
    least = np.finfo(np.float32).min  # finite, so that a row is not taken for a broken one
    np.testing.assert_array_equal(banned, [[0, least, 0, 0, least], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("temperature", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.99}, {"min_p": 1e-6}])
def test_a_banned_token_is_not_drawn(temperature, options):
    rows = setup(64, seed=np.arange(64), temperature=temperature, stop_ids=(3,), min_left=1, **options)
    logits = rule_out(jnp.tile(jnp.asarray([0.0, 1.0, 2.0, 3.0]), (64, 1)), rows)
    tokens = draw(logits, rows, jnp.zeros(64, jnp.int32), sampler=Sampler.FILTERED).tolist()
    assert 3 not in tokens and 2 in tokens


# Against a sort.


def reference(scaled, top_k, top_p, min_p):
    """min-p, then top-k, then top-p, of one row, in float64; ties at a threshold are kept."""
    scaled = scaled.astype(np.float64)
    weights = np.exp(scaled - scaled.max())
    keep = weights >= min_p
    if 0 < top_k < keep.sum():
        keep &= scaled >= np.sort(scaled[keep])[::-1][top_k - 1]
    if top_p < 1:
        values = np.sort(scaled[keep])[::-1]
        mass = np.cumsum(np.exp(values - scaled.max()))
        keep &= scaled >= values[np.searchsorted(mass, top_p * mass[-1])]
    return keep


OPTIONS = list(
    itertools.product((0, 1, 3, 50, 10**6), (1e-6, 0.1, 0.5, 0.9, 0.999, 1.0), (0.0, 0.01, 0.3, 1.0))
)


def random_logits(kind, vocab, rng):
    if kind == "ties":
        return rng.integers(-3, 4, (len(OPTIONS), vocab)).astype(np.float32)
    scale = {"normal": 2.0, "peaked": 30.0, "flat": 1e-3, "huge": 1e30}[kind]
    return (scale * rng.standard_normal((len(OPTIONS), vocab))).astype(np.float32)


@pytest.mark.parametrize("vocab", [5, 64, 1000])
def test_all_combinations_against_a_sort(vocab):
    rng = np.random.default_rng(vocab)
    top_k, top_p, min_p = (list(column) for column in zip(*OPTIONS, strict=True))
    rows = setup(len(OPTIONS), top_k=top_k, top_p=top_p, min_p=min_p)
    for kind in ("normal", "peaked", "flat", "huge", "ties"):
        logits = random_logits(kind, vocab, rng)
        survive = np.asarray(keep_likely(jnp.asarray(logits), rows)) > -INF
        for row, options in enumerate(OPTIONS):
            check_row(logits[row], survive[row], options, f"{kind}, {options}")


def check_row(logits, survive, options, note):
    """As the reference, but for a token whose mass decides by less than float32 can tell."""
    expected = reference(logits, *options)
    if (survive == expected).all():
        return
    top_k, top_p, min_p = options
    low = reference(logits, top_k, max(1e-9, top_p - 2e-6), min_p * (1 + 2e-6))
    high = reference(logits, top_k, min(1 - 1e-9, top_p + 2e-6) if top_p < 1 else 1, min_p * (1 - 2e-6))
    assert (low <= survive).all() and (survive <= high).all(), note


def test_a_vocabulary_of_128k():
    logits = (3 * np.random.default_rng(0).standard_normal((3, 128_256))).astype(np.float32)
    options = [(50, 1.0, 0.0), (0, 0.9, 0.0), (1000, 0.95, 0.01)]
    top_k, top_p, min_p = (list(column) for column in zip(*options, strict=True))
    survive = np.asarray(keep_likely(jnp.asarray(logits), setup(3, top_k=top_k, top_p=top_p, min_p=min_p)))
    assert (survive[0] > -INF).sum() == 50
    for row in range(3):
        expected = reference(logits[row], *options[row])
        assert abs(expected.sum() - (survive[row] > -INF).sum()) <= 1e-4 * expected.sum()
        assert ((survive[row] > -INF) != expected).sum() <= 1e-4 * expected.sum()


# Draws.


def frequencies(logits, num, **options):
    """Of `num` draws from one row, each with a seed of its own."""
    rows = setup(num, seed=np.arange(num), **options)
    tokens = draw(
        jnp.tile(jnp.asarray(logits, jnp.float32), (num, 1)), rows, jnp.full(num, 7), sampler=Sampler.FILTERED
    )
    return np.bincount(np.asarray(tokens), minlength=len(logits))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_draws_from_the_softmax(temperature):
    """Chi-square over ten tokens: with nine degrees of freedom one in 1000 true samples exceeds 27.9."""
    logits, num = np.random.default_rng(1).standard_normal(10), 20_000
    probs = np.exp(logits / temperature)
    expected = num * probs / probs.sum()
    counts = frequencies(logits, num, temperature=temperature)
    assert ((counts - expected) ** 2 / expected).sum() < 27.9


def test_draws_keep_to_what_is_kept():
    counts = frequencies(np.log(FOUR), 5000, top_k=2)
    assert counts[0] == counts[2] == 0
    assert abs(counts[1] / 5000 - 4 / 7) < 0.03


def test_positions_are_independent_draws_too():
    num = 20_000
    logits = jnp.tile(jnp.log(jnp.asarray(FOUR)), (num, 1))
    tokens = np.asarray(draw(logits, setup(num, seed=5), jnp.arange(num), sampler=Sampler.FILTERED))
    np.testing.assert_allclose(np.bincount(tokens) / num, FOUR, atol=0.02)
    pairs = np.bincount(4 * tokens[:-1] + tokens[1:], minlength=16) / (num - 1)
    np.testing.assert_allclose(pairs, np.outer(FOUR, FOUR).reshape(-1), atol=0.02)


def test_the_noise_depends_on_seed_sample_and_position_alone():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((6, 50)), jnp.float32)
    seeds, positions = np.asarray([0, 1, 2**31, 2**32 - 1, 7, 7]), jnp.asarray([3, 3, 5, 5, 9, 10])
    samples = np.asarray([0, 1, 0, 127, 3, 3])
    rows = setup(6, seed=seeds, sample_idx=samples)
    tokens = draw(logits, rows, positions, sampler=Sampler.FILTERED).tolist()
    order = [4, 2, 0, 5, 1, 3]
    moved = draw(
        logits[np.asarray(order)],
        setup(6, seed=seeds[order], sample_idx=samples[order]),
        positions[np.asarray(order)],
        sampler=Sampler.FILTERED,
    )
    assert moved.tolist() == [tokens[row] for row in order]
    for row in range(6):
        alone = setup(seed=seeds[row], sample_idx=samples[row])
        assert (
            draw(logits[row : row + 1], alone, positions[row : row + 1], sampler=Sampler.FILTERED).item()
            == tokens[row]
        )


def test_different_seeds_samples_and_positions_differ():
    logits = jnp.zeros((64, 1000))
    by_seed = draw(logits, setup(64, seed=np.arange(64)), jnp.full(64, 3), sampler=Sampler.FILTERED)
    by_position = draw(logits, setup(64, seed=3), jnp.arange(64), sampler=Sampler.FILTERED)
    rows = setup(64, seed=3, sample_idx=np.arange(64))
    by_sample = draw(logits, rows, jnp.full(64, 3), sampler=Sampler.FILTERED)
    for tokens in (by_seed, by_position, by_sample):
        assert len(set(tokens.tolist())) > 55


@pytest.mark.parametrize("sampler", [Sampler.PLAIN, Sampler.FILTERED])
def test_the_noise_is_the_documented_key(sampler):
    """fold_in(fold_in(key(seed), sample), position): sample 0 draws what n = 1 always drew."""
    for seed, sample_idx, position in ((0, 0, 0), (2**32 - 1, 5, 77)):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(seed)), sample_idx), position)
        expected = jnp.argmax(jax.random.gumbel(key, (5000,)))
        rows = setup(seed=seed, sample_idx=sample_idx)
        assert draw(jnp.zeros((1, 5000)), rows, jnp.asarray([position]), sampler=sampler).item() == expected


def test_greedy_rows_in_a_mixed_batch():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((8, 100)), jnp.float32)
    rows = setup(8, seed=np.arange(8), temperature=[0, 1, 0, 5, 0, 1, 0, 1], top_k=[0, 0, 3, 3, 0, 1, 1, 0])
    tokens = np.asarray(draw(logits, rows, jnp.arange(8), sampler=Sampler.FILTERED))
    best = np.argmax(np.asarray(logits), -1)
    np.testing.assert_array_equal(tokens[::2], best[::2])
    assert tokens[5] == best[5]  # top_k 1
    assert draw(logits, rows, jnp.arange(8), sampler=Sampler.GREEDY).tolist() == best.tolist()


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_unlikely_tokens_are_looked_for_only_where_a_live_row_leaves_them_out(monkeypatch, options):
    """With a vocabulary of 128k the search costs a CPU ten times all else."""
    none = jnp.full(3, 2**32 - 1, jnp.uint32)  # keeps no token: then the first one is drawn
    monkeypatch.setattr(sampling, "lowest_likely", lambda scaled, rows: none)
    logits = jnp.asarray([[0.0, 100.0, 0.0]] * 3)

    def tokens(*, live=(True, True, True), **options):
        columns = setup(3, **options)
        drawn, _ = sampling.draw(
            logits, Rows(columns), jnp.arange(3), jnp.asarray(live), sampler=Sampler.FILTERED
        )
        return drawn.tolist()

    name, value = next(iter(options.items()))
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}[name]
    of_second = {name: [off, value, off]}
    assert tokens() == [1, 1, 1], "no row filters"
    assert tokens(**of_second, temperature=[1.0, 0.0, 1.0]) == [1, 1, 1], "a greedy row needs no filter"
    assert tokens(**of_second, live=(True, False, True)) == [1, 1, 1], "a dead row needs none"
    assert tokens(**of_second) == [0, 0, 0]


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}])
@pytest.mark.parametrize("temperature", [1e-5, 1.0, 100.0])
def test_extreme_logits_give_no_nan_and_a_possible_token(options, temperature):
    rows = np.asarray([[0, 0, 0, 0], [-INF, 1, -INF, -INF], [1e30, -1e30, 0, 1], [-1e30, -1e30, -1e30, 0]])
    setups = setup(4, temperature=temperature, **options)
    tokens = draw(jnp.asarray(rows, jnp.float32), setups, jnp.arange(4), sampler=Sampler.FILTERED).tolist()
    assert tokens[1:] == [1, 0, 3]
    assert not np.isnan(np.asarray(keep_likely(jnp.asarray(rows, jnp.float32), setups))).any()
