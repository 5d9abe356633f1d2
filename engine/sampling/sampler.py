"""Logits to tokens, each from its own row, options and seed, never from its neighbours'."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import Protocol

import torch

from engine.sampling.masks import Masks, constrained, unpacked
from engine.scheduling.sequence import Sequence


class Sampler(Protocol):
    """Chooses the next tokens of a step."""

    def expect(self, sequences: list[Sequence]) -> None:
        """Begin what takes no logits: these are the sequences of the next `choose`."""

    def choose(
        self, logits: torch.Tensor, sequences: list[Sequence], latest: torch.Tensor
    ) -> torch.Tensor:
        """Next tokens `[sequences]` from logits `[sequences, vocabulary]` (float32).

        `latest` are the tokens that in-flight ones of `sequences` refer to.
        """


class HostSampler:
    """Greedy and random choice with penalties, bias and filters.

    A random choice inverts the cumulative distribution at one number drawn from (seed, answer,
    position), so a preempted or resubmitted sequence with a seed repeats itself.
    """

    def __init__(self, eos_ids: frozenset[int], vocabulary: int) -> None:
        self._eos_ids = sorted(eos_ids)
        self._vocabulary = vocabulary
        self._masks = Masks(vocabulary)

    def expect(self, sequences: list[Sequence]) -> None:
        """As `Sampler` has it."""
        self._masks.expect(sequences)

    def choose(
        self, logits: torch.Tensor, sequences: list[Sequence], latest: torch.Tensor
    ) -> torch.Tensor:
        """As `Sampler` has it. `latest` is of no use: no token is in flight here."""
        masks = self._masks.take(sequences)
        adjusted = logits
        for row, sequence in enumerate(sequences):
            if _adjusts(sequence):
                if adjusted is logits:
                    adjusted = logits.clone()
                self._adjust(adjusted[row], sequence)
        return self._pick(adjusted, sequences, masks)

    def _pick(
        self, logits: torch.Tensor, sequences: list[Sequence], masks: torch.Tensor | None
    ) -> torch.Tensor:
        """`masks` are of the sequences with a constraint."""
        if masks is not None:
            logits = self._masked(logits, sequences, masks)
        chosen = logits.argmax(dim=-1)
        rows = [i for i, s in enumerate(sequences) if s.sampling.temperature > 0]
        if rows:
            index = torch.tensor(rows, device=logits.device)
            picked = self._draw(logits[index], [sequences[i] for i in rows])
            chosen = chosen.index_copy(0, index, picked)
        return chosen

    def _masked(
        self, logits: torch.Tensor, sequences: list[Sequence], masks: torch.Tensor
    ) -> torch.Tensor:
        allowed = unpacked(masks, self._vocabulary)
        return constrained(logits, sequences, allowed, lambda tensor: tensor)

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
        ends = forbidden(sequence, self._eos_ids)
        if ends:
            row[torch.tensor(ends, device=row.device)] = float("-inf")

    def _draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        options = [sequence.sampling for sequence in sequences]

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, device=logits.device)[:, None]

        logits = logits / column([o.temperature for o in options])
        top_k = [o.top_k if o.top_k > 0 else self._vocabulary for o in options]
        filtered = any(o.top_p < 1 for o in options) or min(top_k) < self._vocabulary
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
            # back in the vocabulary's order: a filtered neighbour must not change a row's token
            probabilities = torch.zeros_like(probabilities).scatter_(1, order, probabilities)
        if any(o.min_p > 0 for o in options):
            best = probabilities.amax(dim=-1, keepdim=True)
            least = best * column([o.min_p for o in options])
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        cumulative = probabilities.cumsum(dim=-1)
        point = [uniform(sequence) for sequence in sequences]
        target = torch.tensor(point, dtype=torch.float64, device=logits.device)[:, None]
        # right=True: a token of probability 0 has the same sum as the one before and is never met
        picked = torch.searchsorted(cumulative, target * cumulative[:, -1:], right=True)
        return picked.clamp_(max=logits.shape[-1] - 1)[:, 0]


def uniform(sequence: Sequence) -> float:
    """The number in [0, 1) that chooses a sequence's next token; the seed's, if it has one."""
    seed = sequence.sampling.seed
    if seed is None:
        word = os.urandom(8)
    else:
        place = struct.pack("<qqq", seed, sequence.index, len(sequence.tokens))
        word = hashlib.blake2b(place, digest_size=8).digest()
    return (int.from_bytes(word, "little") >> 11) * 2.0**-53


def forbidden(sequence: Sequence, eos_ids: list[int]) -> list[int]:
    """Tokens that would end the sequence before it has as many as were asked for."""
    options = sequence.sampling
    if sequence.generated >= options.min_tokens:
        return []
    if sequence.constraint is not None and sequence.constraint.complete:
        return []
    return sorted({*eos_ids, *options.stop_token_ids})


def takes_likeliest(sequence: Sequence) -> bool:
    """Whether its next token is that of the largest logit, and no logit is asked for beside it."""
    options = sequence.sampling
    return (
        options.temperature <= 0
        and options.logprobs is None
        and sequence.constraint is None
        and not _adjusts(sequence)
    )


def _adjusts(sequence: Sequence) -> bool:
    options = sequence.sampling
    return bool(
        options.repetition_penalty != 1.0
        or options.frequency_penalty
        or options.presence_penalty
        or options.logit_bias
        or sequence.generated < options.min_tokens
    )
