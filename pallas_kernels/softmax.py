"""Constants of the online softmax, in units of log 2."""

from __future__ import annotations

import math

LOG2E = math.log2(math.e)  # exp(x) = exp2(x * LOG2E), and the GPU has an instruction for exp2

NEG_INF = -1e30  # finite: inf - inf would be NaN where a row has seen no key yet
