"""How much of a model one rank holds. Light: the server plans with it."""

from __future__ import annotations

import math
from dataclasses import replace

from engine.memory.checkpoint import Checkpoint


def share_of(checkpoint: Checkpoint, ranks: int) -> Checkpoint:
    """The checkpoint as rank 0, which holds the most, sees it: its heads and its parameters.

    The vocabulary stays whole, since rank 0 gathers the logits.
    """
    if ranks == 1:
        return checkpoint
    table = math.ceil(checkpoint.vocabulary / ranks) * checkpoint.hidden
    tables = 1 if checkpoint.tied else 2
    split = checkpoint.decoder_parameters - checkpoint.whole_parameters
    split -= tables * checkpoint.embedding_parameters
    return replace(
        checkpoint,
        heads=checkpoint.heads // ranks,
        kv_heads=checkpoint.kv_heads // ranks,
        intermediate=checkpoint.intermediate // ranks,
        decoder_parameters=checkpoint.whole_parameters + split // ranks + tables * table,
        embedding_parameters=table,
        product_parameters=checkpoint.product_parameters // ranks,
    )


def undivided(heads: int, kv_heads: int, intermediate: int, ranks: int) -> str | None:
    """Why layers of these sizes cannot be split among that many ranks; None when they can."""
    common = math.gcd(heads, kv_heads, intermediate)
    if common % ranks == 0:
        return None
    possible = [str(number) for number in range(1, common + 1) if common % number == 0]
    return (
        f"parallelism.tensor={ranks} does not divide the model's {heads} heads, {kv_heads} "
        f"key-value heads and {intermediate} intermediate features: "
        f"{' or '.join([', '.join(possible[:-1]), possible[-1]] if possible[1:] else possible)} "
        "can be set"
    )
