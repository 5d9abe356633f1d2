"""About how long compiling takes, from what it took.

Measured with FlashInfer 0.7.2.post1 and nvcc 13.0 for sm_90a on two cores: the time of a module
alone, and that of its slowest source, which no number of cores makes shorter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from engine.kernels.module import KernelModule

CORES = 2  # that the times are of
TIMES: tuple[tuple[str, float, float], ...] = (  # name, seconds, seconds of the slowest source
    (r"page", 29, 26),
    (r"norm", 39, 39),
    (r"rope", 50, 50),
    (r"sampling", 97, 97),
    (r"silu_and_mul", 6, 6),
    (r"appliance_decode_products_.*", 12, 12),
    (r"gelu_tanh_and_mul", 8, 8),
    (r"batch_prefill_.*_sm90", 760, 164),
    (r"single_prefill_.*_sm90", 364, 164),
    (r"batch_prefill_with_bidirectional_ranges_.*", 110, 26),
    (r"batch_prefill_.*_use_swa_True.*", 98, 30),
    (r"batch_prefill_.*_use_logits_cap_True.*", 150, 30),
    (r"batch_prefill_.*_head_dim_qk_64_.*", 65, 17),
    (r"batch_prefill_.*_head_dim_qk_256_.*", 77, 18),
    (r"batch_prefill_.*", 95, 23),
    (r"batch_decode_.*", 24, 14),
    (r"single_prefill_.*", 34, 14),
)
OTHERS = (60.0, 60.0)


def seconds(modules: Sequence[KernelModule], cores: int | None = None) -> float:
    """About what these take, on that many cores, or on all that this process may use."""
    if not modules:
        return 0.0
    times = [_time(module.name) for module in modules]
    threads = cores or len(os.sched_getaffinity(0))
    return max(CORES * sum(whole for whole, _ in times) / threads, max(one for _, one in times))


def in_words(duration: float) -> str:
    """A duration as somebody estimates it."""
    if duration < 90:
        return f"{max(10, round(duration, -1)):.0f} s"
    return f"{round(duration / 60)} min"


def _time(name: str) -> tuple[float, float]:
    return next(
        ((whole, slowest) for form, whole, slowest in TIMES if re.fullmatch(form, name)), OTHERS
    )
