"""The same choice as `HostSampler`'s by our library for the CPU: no row is sorted."""

from __future__ import annotations

import torch

from engine.native.library import Machine
from engine.native.loading import Choice
from engine.sampling.sampler import HostSampler, uniform
from engine.scheduling.sequence import Sequence


class NativeSampler(HostSampler):
    """Rows side by side on the library's threads; probabilities are float32 and sums float64.

    Of equally likely tokens at the end of what a filter keeps, the first ones stay.
    """

    def __init__(self, eos_ids: frozenset[int], vocabulary: int, machine: Machine) -> None:
        super().__init__(eos_ids, vocabulary)
        self._machine = machine
        machine.reserve_choice(vocabulary)

    def _pick(
        self, logits: torch.Tensor, sequences: list[Sequence], masks: torch.Tensor | None
    ) -> torch.Tensor:
        if masks is not None and any(_weighs(sequence) for sequence in sequences):
            logits, masks = self._masked(logits, sequences, masks), None
        masked = [row for row, sequence in enumerate(sequences) if sequence.constraint is not None]
        return self._machine.choose(logits, list(map(_choice, sequences)), masks, masked)


def _weighs(sequence: Sequence) -> bool:
    """Whether tokens are weighed together, which the library does not do."""
    return sequence.constraint is not None and sequence.constraint.group is not None


def _choice(sequence: Sequence) -> Choice:
    options = sequence.sampling
    if options.temperature <= 0:
        return Choice()
    return Choice(
        point=uniform(sequence),
        temperature=options.temperature,
        top_p=options.top_p,
        min_p=options.min_p,
        top_k=min(max(options.top_k, 0), 1 << 30),
    )
