"""Whether a request can ever run, by its length alone."""

from __future__ import annotations

import math


def admission(
    prompt_tokens: int, max_tokens: int, max_len: int, pages: int, page_size: int
) -> str | None:
    """Return why a request of this length can never run, or None when it can."""
    total = prompt_tokens + max_tokens
    if total > max_len:
        return (
            f"the prompt has {prompt_tokens} tokens and {max_tokens} are asked for, "
            f"together {total}; the model takes {max_len}"
        )
    if math.ceil(total / page_size) > pages:
        return (
            f"the prompt has {prompt_tokens} tokens and {max_tokens} are asked for, "
            f"together {total}; the KV cache holds {pages * page_size}"
        )
    return None


def span_admission(length: int, max_tokens_per_step: int, max_sequences: int) -> str | None:
    """Return why an item of `length` tokens that see each other can never run, or None if it can.

    One step computes all of it, beside a token of every other sequence that may run.
    """
    needed = length + max_sequences - 1
    if length == 0 or needed <= max_tokens_per_step:
        return None
    return (
        f"an item of {length} tokens that attend to each other is computed in one step: with "
        f"engine.max_sequences={max_sequences} that takes engine.max_tokens_per_step={needed}, "
        f"not {max_tokens_per_step}"
    )
