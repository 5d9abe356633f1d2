"""Choosing tokens on the device, without the host waiting for any of it.

Tokens that are still in flight take part in penalties: they are looked up on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.device.device import Device
from engine.sampling.constraint import constrained
from engine.sampling.sampler import forbidden, uniform
from engine.scheduling.sequence import Sequence


def resolve(token_ids: torch.Tensor, latest: torch.Tensor) -> torch.Tensor:
    """Replace tokens in flight by those chosen last; `latest` is indexed by row."""
    return torch.where(token_ids < 0, latest[(-1 - token_ids).clamp_(min=0)], token_ids)


class DeviceSampler:
    """The same choice as `HostSampler`'s, by FlashInfer's kernels.

    A seeded row inverts its own distribution at its own number, as `HostSampler` does, since the
    kernels' random numbers depend on the row's place in the batch.
    """

    def __init__(
        self, eos_ids: frozenset[int], vocabulary: int, device: Device, kernels: Any
    ) -> None:
        """`kernels` is FlashInfer's module `sampling`, or has its interface."""
        self._eos_ids = sorted(eos_ids)
        self._vocabulary = vocabulary
        self._device = device
        self._kernels = kernels
        self._seed = int.from_bytes(torch.randint(2**31, (1,)).numpy().tobytes(), "little")
        self._draws = 0

    def choose(
        self, logits: torch.Tensor, sequences: list[Sequence], latest: torch.Tensor
    ) -> torch.Tensor:
        """Next tokens `[sequences]` from logits `[sequences, vocabulary]` (float32).

        `latest` are the tokens that in-flight ones of `sequences` refer to.
        """
        logits = self._adjusted(logits, sequences, latest)
        logits = constrained(logits, sequences, self._device.upload)
        best = logits.argmax(dim=-1)
        if all(sequence.sampling.temperature == 0 for sequence in sequences):
            return best
        drawn = self._draw(self._probabilities(logits, sequences), sequences)
        greedy = self._column([s.sampling.temperature == 0 for s in sequences], torch.bool)
        return torch.where(greedy, best, drawn.to(best.dtype))

    def _column(self, values: list[Any], dtype: torch.dtype) -> torch.Tensor:
        return self._device.upload(torch.tensor(values, dtype=dtype))

    def _adjusted(
        self, logits: torch.Tensor, sequences: list[Sequence], latest: torch.Tensor
    ) -> torch.Tensor:
        """Logits with penalties, bias and forbidden ends; the argument stays as it is."""
        adjusted = self._penalised(logits, sequences, latest)
        adds: list[tuple[int, int, float]] = []
        for row, sequence in enumerate(sequences):
            adds += [(row, token, bias) for token, bias in sequence.sampling.logit_bias.items()]
            adds += [(row, token, float("-inf")) for token in forbidden(sequence, self._eos_ids)]
        if not adds:
            return adjusted
        if adjusted is logits:
            adjusted = logits.clone()
        rows, tokens, values = zip(*adds, strict=True)
        places = (self._column(list(rows), torch.int64), self._column(list(tokens), torch.int64))
        return adjusted.index_put_(
            places, self._column(list(values), torch.float32), accumulate=True
        )

    def _penalised(
        self, logits: torch.Tensor, sequences: list[Sequence], latest: torch.Tensor
    ) -> torch.Tensor:
        def wanting(wants: Callable[[Sequence], bool]) -> list[int]:
            return [row for row, sequence in enumerate(sequences) if wants(sequence)]

        repeating = wanting(lambda s: s.sampling.repetition_penalty != 1.0)
        counting = wanting(
            lambda s: bool(s.sampling.frequency_penalty or s.sampling.presence_penalty)
        )
        if not repeating and not counting:
            return logits
        logits = logits.clone()
        if repeating:
            rows = self._column(repeating, torch.int64)
            counts = self._counts([sequences[row].tokens for row in repeating], latest)
            penalty = self._column(
                [[sequences[row].sampling.repetition_penalty] for row in repeating], torch.float32
            )
            values = logits[rows]
            penalised = torch.where(values > 0, values / penalty, values * penalty)
            logits[rows] = torch.where(counts > 0, penalised, values)
        if counting:
            rows = self._column(counting, torch.int64)
            counts = self._counts([sequences[row].output for row in counting], latest)
            options = [sequences[row].sampling for row in counting]
            frequency = self._column([[o.frequency_penalty] for o in options], torch.float32)
            presence = self._column([[o.presence_penalty] for o in options], torch.float32)
            logits[rows] = logits[rows] - counts * frequency - (counts > 0) * presence
        return logits

    def _counts(self, texts: list[list[int]], latest: torch.Tensor) -> torch.Tensor:
        """How often each token occurs in each text, `[texts, vocabulary]` float32."""
        rows = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(t) for t in texts]))
        tokens = self._column([token for text in texts for token in text], torch.int64)
        counts = torch.zeros(len(texts), self._vocabulary, device=latest.device)
        ones = torch.ones(len(tokens), device=latest.device)
        places = (self._device.upload(rows), resolve(tokens, latest.long()))
        return counts.index_put_(places, ones, accumulate=True)

    def _probabilities(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        """Filtered distributions; a filter leaves the rows alone that do not ask for it."""
        options = [sequence.sampling for sequence in sequences]
        temperature = self._column([o.temperature or 1.0 for o in options], torch.float32)
        probabilities: torch.Tensor = self._kernels.softmax(logits.contiguous(), temperature)
        if any(0 < o.top_k < self._vocabulary for o in options):
            limit = [min(o.top_k or self._vocabulary, self._vocabulary) for o in options]
            top_k = self._column(limit, torch.int32)
            kept = self._kernels.top_k_renorm_probs(probabilities, top_k, is_deterministic=True)
            probabilities = torch.where((top_k < self._vocabulary)[:, None], kept, probabilities)
        if any(o.top_p < 1 for o in options):
            top_p = self._column([o.top_p for o in options], torch.float32)
            kept = self._kernels.top_p_renorm_probs(probabilities, top_p, is_deterministic=True)
            probabilities = torch.where((top_p < 1)[:, None], kept, probabilities)
        if any(o.min_p > 0 for o in options):
            least = self._column([[o.min_p] for o in options], torch.float32)
            least = least * probabilities.amax(dim=-1, keepdim=True)
            probabilities = torch.where(probabilities < least, 0.0, probabilities)
        return probabilities

    def _draw(self, probabilities: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        if all(sequence.sampling.seed is None for sequence in sequences):
            # one draw takes its numbers from (seed, row, offset); offsets never repeat
            self._draws += 1
            seed = self._column([self._seed], torch.int64)
            offset = self._column([self._draws * self._vocabulary], torch.int64)
            total = probabilities.sum(dim=-1, keepdim=True)
            drawn: torch.Tensor = self._kernels.sampling_from_probs(
                probabilities / total, seed=seed, offset=offset
            )
            return drawn
        cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
        points = self._column([[uniform(s)] for s in sequences], torch.float64)
        # right=True: a token of probability 0 has the same sum as the one before, never met
        picked = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
        return picked.clamp_(max=self._vocabulary - 1)[:, 0]
