"""Choosing tokens on the device, without the host waiting for any of it.

Tokens that are still in flight take part in penalties: they are looked up on the device.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.device.device import Device
from engine.sampling.columns import Columns
from engine.sampling.constraint import WORD
from engine.sampling.masks import Masks, constrained
from engine.sampling.sampler import forbidden, uniform
from engine.sampling.token_counts import TokenCounts
from engine.scheduling.sequence import Sequence


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
        self._masks = Masks(vocabulary)
        self._kernels = kernels
        self._seed = int.from_bytes(torch.randint(2**31, (1,)).numpy().tobytes(), "little")
        self._draws = 0
        self._counts = TokenCounts(vocabulary, device)
        self._columns = Columns([], vocabulary, device)  # of the step before

    def expect(self, sequences: list[Sequence]) -> None:
        """As `Sampler` has it."""
        self._masks.expect(sequences)

    def choose(
        self, logits: torch.Tensor, sequences: list[Sequence], latest: torch.Tensor
    ) -> torch.Tensor:
        """Next tokens `[sequences]` from logits `[sequences, vocabulary]` (float32).

        `latest` are the tokens that in-flight ones of `sequences` refer to.
        """
        masks = self._masks.take(sequences)
        columns = self._columns_of(sequences)
        logits = self._adjusted(logits, sequences, latest, columns)
        if masks is not None:
            logits = constrained(logits, sequences, self._unpacked(masks), self._device.upload)
        best = logits.argmax(dim=-1)
        if columns.greedy:
            return best
        drawn = self._draw(self._probabilities(logits, columns), sequences, columns)
        return torch.where(columns.greedy_rows, best, drawn.to(best.dtype))

    def _unpacked(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks as `allowed`, on the device, which gets a bit for each token."""
        bits = torch.arange(WORD, dtype=torch.int32, device=self._device.device)
        every = (self._device.upload(masks)[:, :, None] >> bits & 1).flatten(1)
        return every[:, : self._vocabulary].bool()

    def _columns_of(self, sequences: list[Sequence]) -> Columns:
        options = [sequence.sampling for sequence in sequences]
        if options != self._columns.options:
            self._columns = Columns(options, self._vocabulary, self._device)
        return self._columns

    def _column(self, values: list[Any], dtype: torch.dtype) -> torch.Tensor:
        return self._device.upload(torch.tensor(values, dtype=dtype))

    def _adjusted(
        self,
        logits: torch.Tensor,
        sequences: list[Sequence],
        latest: torch.Tensor,
        columns: Columns,
    ) -> torch.Tensor:
        """Logits with penalties, bias and forbidden ends; the argument stays as it is."""
        ends = [
            (row, token)
            for row in columns.lasting
            for token in forbidden(sequences[row], self._eos_ids)
        ]
        if not columns.penalised and columns.bias is None and not ends:
            return logits
        logits = logits.clone()
        if columns.penalised:
            self._penalise(logits, sequences, latest, columns)
        if columns.bias is not None:
            rows, tokens, values = columns.bias
            logits.index_put_((rows, tokens), values, accumulate=True)
        if ends:
            rows, tokens = self._column(
                [list(each) for each in zip(*ends, strict=True)], torch.int64
            )
            logits[rows, tokens] = float("-inf")
        return logits

    def _penalise(
        self,
        logits: torch.Tensor,
        sequences: list[Sequence],
        latest: torch.Tensor,
        columns: Columns,
    ) -> None:
        """Change the rows that ask for it; a penalty that a row does not ask for is neutral."""
        rows = columns.penalised_rows
        repetition, frequency, presence = columns.penalties
        prompt, output = self._counts.of([sequences[row] for row in columns.penalised], latest)
        values = logits[rows]
        if columns.repeats:
            penalised = torch.where(values > 0, values / repetition, values * repetition)
            values = torch.where(prompt | (output > 0), penalised, values)
        if columns.counts:
            values = values - output * frequency - (output > 0) * presence
        logits[rows] = values

    def _probabilities(self, logits: torch.Tensor, columns: Columns) -> torch.Tensor:
        """Filtered distributions; a filter leaves the rows alone that do not ask for it."""
        probabilities: torch.Tensor = self._kernels.softmax(
            logits.contiguous(), columns.temperature
        )
        top_k, top_p, min_p = columns.top_k, columns.top_p, columns.min_p
        if top_k is not None:
            kept = self._kernels.top_k_renorm_probs(probabilities, top_k, is_deterministic=True)
            probabilities = torch.where((top_k < self._vocabulary)[:, None], kept, probabilities)
        if top_p is not None:
            kept = self._kernels.top_p_renorm_probs(probabilities, top_p, is_deterministic=True)
            probabilities = torch.where((top_p < 1)[:, None], kept, probabilities)
        if min_p is not None:
            least = min_p * probabilities.amax(dim=-1, keepdim=True)
            probabilities = torch.where(probabilities < least, 0.0, probabilities)
        return probabilities

    def _draw(
        self, probabilities: torch.Tensor, sequences: list[Sequence], columns: Columns
    ) -> torch.Tensor:
        if not columns.seeded:
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
