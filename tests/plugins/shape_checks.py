"""What checks annotations while the tests run: beartype, which does not know generic NamedTuples."""

from __future__ import annotations

import jax
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

from jbatch.seam.step_input import StepFields
from jbatch.seam.step_output import Logprobs

GENERIC = {cls[array]: tuple for cls in (StepFields, Logprobs) for array in (jax.Array, np.ndarray)}
check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict(GENERIC)))
