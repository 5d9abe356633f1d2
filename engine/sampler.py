"""Logits to tokens, each from its own row, options and seed, never from its neighbours'."""

from __future__ import annotations

import hashlib
import random
import struct

import torch

from engine.request import TokenLogprob
from engine.sequence import Sequence


class Sampler:
    """Greedy and random choice with penalties, bias and filters.

    A random choice inverts the cumulative distribution at one number drawn from (seed, answer,
    position), so a preempted or resubmitted sequence with a seed repeats itself.
    """

    def __init__(self, eos_ids: frozenset[int], vocabulary: int) -> None:
        self._eos_ids = sorted(eos_ids)
        self._vocabulary = vocabulary
        self._entropy = random.SystemRandom()

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """The next token of each sequence from logits `[sequences, vocabulary]` (float32)."""
        adjusted = logits
        for row, sequence in enumerate(sequences):
            if _adjusts(sequence):
                if adjusted is logits:
                    adjusted = logits.clone()
                self._adjust(adjusted[row], sequence)
        chosen = adjusted.argmax(dim=-1)
        rows = [i for i, s in enumerate(sequences) if s.sampling.temperature > 0]
        if rows:
            index = torch.tensor(rows, device=logits.device)
            picked = self._draw(adjusted[index], [sequences[i] for i in rows])
            chosen = chosen.index_copy(0, index, picked)
        return chosen.tolist()

    def _adjust(self, row: torch.Tensor, sequence: Sequence) -> None:
        options, output = sequence.sampling, sequence.output
        if options.repetition_penalty != 1.0:
            seen = torch.tensor(sequence.tokens, device=row.device).unique()
            seen = seen[seen < row.shape[0]]
            values = row[seen]
            row[seen] = torch.where(
                values > 0, values / options.repetition_penalty, values * options.repetition_penalty
            )
        if output and (options.frequency_penalty or options.presence_penalty):
            tokens, counts = torch.tensor(output, device=row.device).unique(return_counts=True)
            row[tokens] -= options.frequency_penalty * counts + options.presence_penalty
        if options.logit_bias:
            tokens = torch.tensor(list(options.logit_bias), device=row.device)
            row[tokens] += torch.tensor(list(options.logit_bias.values()), device=row.device)
        if sequence.generated < options.min_tokens:
            forbidden = [*self._eos_ids, *options.stop_token_ids]
            if forbidden:
                row[torch.tensor(forbidden, device=row.device)] = float("-inf")

    def _draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        options = [sequence.sampling for sequence in sequences]

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, device=logits.device)[:, None]

        logits = logits / column([o.temperature for o in options])
        top_k = [o.top_k if o.top_k > 0 else self._vocabulary for o in options]
        filtered = any(o.top_p < 1 for o in options) or min(top_k) < self._vocabulary
        order = None
        if filtered:
            logits, order = logits.sort(dim=-1, descending=True)
            rank = torch.arange(logits.shape[-1], device=logits.device)
            limit = torch.tensor(top_k, device=logits.device)[:, None]
            logits = logits.masked_fill(rank >= limit, float("-inf"))
        probabilities = logits.softmax(dim=-1, dtype=torch.float64)
        if filtered:
            before = probabilities.cumsum(dim=-1) - probabilities
            top_p = column([o.top_p for o in options])
            probabilities = probabilities.masked_fill((before >= top_p) & (rank > 0), 0.0)
        if any(o.min_p > 0 for o in options):
            best = probabilities.amax(dim=-1, keepdim=True)
            least = best * column([o.min_p for o in options])
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        cumulative = probabilities.cumsum(dim=-1)
        point = [self._uniform(sequence) for sequence in sequences]
        target = torch.tensor(point, dtype=torch.float64, device=logits.device)[:, None]
        # right=True: a token of probability 0 has the same sum as the one before and is never met
        picked = torch.searchsorted(cumulative, target * cumulative[:, -1:], right=True)
        picked = picked.clamp_(max=logits.shape[-1] - 1)
        return (picked if order is None else order.gather(1, picked))[:, 0]

    def _uniform(self, sequence: Sequence) -> float:
        seed = sequence.sampling.seed
        if seed is None:
            return self._entropy.random()
        place = struct.pack("<qqq", seed, sequence.index, len(sequence.tokens))
        word = hashlib.blake2b(place, digest_size=8).digest()
        return (int.from_bytes(word, "little") >> 11) * 2.0**-53


def token_logprobs(logits: torch.Tensor, chosen: list[int], tops: list[int]) -> list[TokenLogprob]:
    """Log-probabilities of the model itself, before any adjustment, for rows `[rows, vocabulary]`.

    `tops[i]` is how many of the best tokens row i wants beside the chosen one.
    """
    logprobs = logits.log_softmax(dim=-1)
    own = logprobs.gather(1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0].tolist()
    values, tokens = logprobs.topk(max(max(tops), 1), dim=-1)
    return [
        TokenLogprob(token, logprob, list(zip(best[:top], value[:top], strict=True)))
        for token, logprob, top, best, value in zip(
            chosen, own, tops, tokens.tolist(), values.tolist(), strict=True
        )
    ]


def _adjusts(sequence: Sequence) -> bool:
    options = sequence.sampling
    return bool(
        options.repetition_penalty != 1.0
        or options.frequency_penalty
        or options.presence_penalty
        or options.logit_bias
        or sequence.generated < options.min_tokens
    )
