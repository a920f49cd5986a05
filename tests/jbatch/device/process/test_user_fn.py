"""The user's function is checked before a model is loaded."""

import jax.numpy as jnp
import pytest

from jbatch.device.process.user_fn import check_logits_fn
from jbatch.errors import ConfigError

VOCAB = 11


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x, "cannot be traced for 3 draws: TypeError"),
        (lambda x, state: x[:, :-1], r"must return float32\[3, 11\], not float32\[3, 10\]"),
        (lambda x, state: x.astype(jnp.bfloat16), r"not bfloat16\[3, 11\]"),
        (lambda x, state: (x, x), "not tuple"),
        (lambda x, state: None, "not NoneType"),
        (lambda x, state: x if x[0, 0] > 0 else -x, "TracerBoolConversionError"),
        (lambda x, state: x + state.colour, "no attribute 'colour'"),
        (lambda x, state: float(x[0, 0]) * x, "ConcretizationTypeError"),  # JAX says a page
    ],
)
def test_a_function_that_does_not_fit_is_refused(function, says):
    with pytest.raises(ConfigError, match=says) as error:
        check_logits_fn(function, 3, VOCAB)
    assert error.value.field == "logits_fn" and "\n" not in str(error.value)


def test_a_function_that_fits():
    check_logits_fn(lambda x, state: x - state.counts * (x > 0), 3, VOCAB)
