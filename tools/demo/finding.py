"""A start for the decoder: a word finds the tokens of what it names.

Matching a word with what a token of a picture shows is learned late and suddenly, or never: after
1,700 steps no head did it. What it takes is known beforehand, though. The tower tells what lies at
a token, linearly; so two heads of the first layer begin with keys that read it off and queries
that are one and the same for a word, and everything else about them is learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration

from tools.demo.batches import Batch
from tools.demo.checkpoint import MERGE
from tools.demo.encoding import name_tokens
from tools.demo.marks import CLASSES, COLOURS, SHAPES

TYPICAL_DISTANCE = 15.0  # positions from a token of a picture to a word that asks about it
SCORE = 5.0  # of a hit, before the softmax
STEADY = 26  # pairs of a head from here on hardly turn within a chat
NAMES_WEIGH = 60.0  # against the rest of the vocabulary, in the fit of the queries
NAMES = (*SHAPES, *COLOURS)


@torch.no_grad()
def find_by_name(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    shown: Iterable[tuple[Batch, torch.Tensor]],
) -> None:
    """Give the last two heads of the decoder's first layer their start, fitted to the tower's
    output `[tokens, width]` for some batches."""
    layer = model.model.language_model.layers[0]
    attention = layer.self_attn
    words = layer.input_layernorm(model.lm_head.weight)
    looked = [(layer.input_layernorm(seen), _named(batch)) for batch, seen in shown]
    seen, named = (torch.cat(parts) for parts in zip(*looked, strict=True))
    keys, key_bias = _fitted_keys(seen, named, words)
    queries = _fitted_queries(words, tokenizer)
    head, half = attention.head_dim, attention.head_dim // 2
    places = [(STEADY + number, 0) for number in range(len(SHAPES))]
    places += [(STEADY - 6 + number // 2, number % 2) for number in range(len(COLOURS))]
    base = model.config.text_config.rope_parameters["rope_theta"]
    of_keys, of_queries = keys.new_zeros(head, keys.shape[1]), keys.new_zeros(head, keys.shape[1])
    bias = keys.new_zeros(head)
    for number, (pair, is_second) in enumerate(places):
        at = pair + half * is_second
        of_keys[at], bias[at] = keys[number], key_bias[number]
        turn = -TYPICAL_DISTANCE * base ** (-pair / half)
        first, second = math.cos(turn), math.sin(turn)
        if is_second:
            first, second = -second, first
        of_queries[pair] += first * queries[number]
        of_queries[pair + half] += second * queries[number]
    of_queries *= SCORE * math.sqrt(head)
    balance = math.sqrt(of_queries.norm() / of_keys.norm())
    heads = model.config.text_config.num_attention_heads
    for number in (heads - 2, heads - 1):
        rows = slice(number * head, (number + 1) * head)
        attention.q_proj.weight[rows] = of_queries / balance
        attention.q_proj.bias[rows] = 0
    rows = slice(-head, None)
    attention.k_proj.weight[rows] = of_keys * balance
    attention.k_proj.bias[rows] = bias * balance


def _named(batch: Batch) -> torch.Tensor:
    """Return which of NAMES a thing at each token has, `[tokens, names]`, 1 or 0."""
    classes = list(CLASSES)
    labels = batch.seen.view(-1, MERGE**2, len(classes))
    shapes = labels[..., [classes.index("shape")]]
    colours = labels[..., [classes.index("colour"), classes.index("later colour")]]
    found = [(shapes == number).any(-1).any(-1) for number in SHAPES.values()]
    found += [(colours == number).any(-1).any(-1) for number in COLOURS.values()]
    return torch.stack(found, dim=-1).float()


def _fitted_keys(
    seen: torch.Tensor, named: torch.Tensor, words: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return by least squares what reads the names `[names, width]` off a token, and nothing off a
    word, with a bias `[names]`."""
    given = torch.cat([seen, words * 0.7])
    given = torch.cat([given, given.new_ones(len(given), 1)], dim=1)
    wanted = torch.cat([named, named.new_zeros(len(words), named.shape[1])])
    fitted = _ridge(given, wanted, given.new_ones(len(given)), 1.0)
    return fitted[:-1].T, fitted[-1]


def _fitted_queries(words: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return by least squares what is 1 for a name's tokens alone, `[names, width]`."""
    wanted = words.new_zeros(len(words), len(NAMES))
    weights = words.new_ones(len(words))
    for number, (_, tokens) in enumerate(name_tokens(tokenizer, NAMES)):
        wanted[tokens, number] = 1.0
        weights[tokens] = NAMES_WEIGH
    return _ridge(words, wanted, weights, 0.3).T


def _ridge(
    given: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor, least: float
) -> torch.Tensor:
    weighed = given * weights[:, None]
    return torch.linalg.solve(
        weighed.T @ given + least * torch.eye(given.shape[1], device=given.device),
        weighed.T @ wanted,
    )
