"""How many pages of keys and values a card has room for: predicted, and measured once loaded."""

from __future__ import annotations

from engine.attention.limits import MIB, PLAN_BYTES, WORKSPACE_BYTES
from engine.memory.checkpoint import Checkpoint
from engine.models.family import Family
from engine.options import PROMPT_ROWS, EngineOptions

CONTEXT_BYTES = 600 * MIB  # what CUDA, its libraries and all kernels take of a card
ROUNDING_SHARE = 0.02  # of the weights: blocks of the allocator that are not full
GRAPH_BYTES = 8 * MIB  # of one recording, beside what it computes in
PIECE_BYTES = MIB // 2  # of one piece of a recorded prompt, of which there are many
FEWEST_TOKENS = 16  # of a recorded prompt
READ_ONCE = 128  # tokens up to which a product takes as long as it takes to read its weight


def graph_sizes(limit: int) -> list[int]:
    """Sizes of batch that are recorded: 1, 2, 4, the multiples of 8, and the limit itself."""
    return sorted({1, 2, 4, *range(8, limit + 1, 8), limit} & set(range(1, limit + 1)))


def prefill_sizes(limit: int) -> list[int]:
    """Tokens of a batch that are recorded: powers of two from 16 on, and the limit itself.

    From 128 tokens on rows too many cost time, and there are sizes halfway to the next.
    """
    sizes, size = {limit} if limit else set(), FEWEST_TOKENS
    while size < limit:
        sizes.add(size)
        if size >= READ_ONCE:
            sizes.add(min(size * 3 // 2, limit))
        size *= 2
    return sorted(sizes)


def prefill_graph_bytes(checkpoint: Checkpoint, itemsize: int, limit: int) -> int:
    """What recorded pieces take: themselves, what they hand on, and what the largest computes in.

    They hand on the residual, queries, keys and values, what attention gives, and angles in
    float32 for each of two kinds of layers.
    """
    if not limit:
        return 0
    pieces = (checkpoint.layers + 1) * len(prefill_sizes(limit))
    heads = 2 * (checkpoint.heads + checkpoint.kv_heads) * checkpoint.head_dim
    inside = 2 * checkpoint.hidden + 3 * checkpoint.intermediate
    passed = limit * (checkpoint.hidden + heads + inside) * itemsize
    return pieces * PIECE_BYTES + passed + limit * 2 * 4 * checkpoint.head_dim


def tower_sizes(family: Family, options: EngineOptions, max_len: int) -> list[int]:
    """Places that a tower is recorded for: all of its family's up to what a step can have."""
    patches = max(
        family.tower_places(modality, max_len, options.max_tokens_per_step)
        for modality in options.modalities
    )
    places = -(-patches // family.patches_in_place)
    smaller = [size for size in family.recorded_places if size < places]
    return list(family.recorded_places[: len(smaller) + 1])


def tower_graph_bytes(family: Family, options: EngineOptions, itemsize: int, max_len: int) -> int:
    """What recordings of a tower take: themselves, and what the largest computes in."""
    sizes = tower_sizes(family, options, max_len)
    hidden, intermediate = family.tower_width(options.modalities[0])
    patches = sizes[-1] * family.patches_in_place
    return GRAPH_BYTES * len(sizes) + patches * (8 * hidden + 2 * intermediate) * itemsize


def overhead_bytes(checkpoint: Checkpoint, weights: int, sequences: int, graphs: bool) -> int:
    """What is held beside weights, activations and caches."""
    held = CONTEXT_BYTES + int(weights * ROUNDING_SHARE)
    held += WORKSPACE_BYTES + 3 * PLAN_BYTES
    if graphs:  # the largest one's logits, in the model's type and in float32
        held += GRAPH_BYTES * len(graph_sizes(sequences)) + 6 * sequences * checkpoint.vocabulary
    return held


def activation_bytes(checkpoint: Checkpoint, itemsize: int, tokens: int, sequences: int) -> int:
    """Most bytes alive in a step.

    While a layer gates: residual, its normed copy, gate, up and their product. Afterwards: logits
    in the model's type and in float32, and beside them one copy more of those of prompt tokens, or
    five of the others while all filters and penalties are at work.
    """
    layer = tokens * (2 * checkpoint.hidden + 3 * checkpoint.intermediate) * itemsize
    prompts, chosen = min(PROMPT_ROWS, tokens), min(sequences, tokens)
    rows = (prompts + chosen) * (itemsize + 4) + max(prompts * 4, chosen * 5 * 4)
    return max(layer, tokens * checkpoint.hidden * itemsize + rows * checkpoint.vocabulary)


def usable_bytes(total: int, free: int, fraction: float) -> int:
    """What may be taken: the fraction of the card, and no more than others have left."""
    return min(int(total * fraction), free)


def measured_pages(
    *, total: int, free: int, fraction: float, reserved: int, page_bytes: int
) -> int:
    """Pages that fit once the rest is loaded; 0 or less if it does not even fit without.

    `reserved` is what is not taken yet: the peak of a step, recordings, cached media.
    """
    left = int(total * fraction) - (total - free) - reserved
    return min(left, free - reserved) // page_bytes - 1
