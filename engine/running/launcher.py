"""A step as far as it goes without waiting for the device."""

from __future__ import annotations

import torch

from engine.device.device import Device
from engine.running.encoder_runner import EncoderRunner
from engine.running.flight import Choice, Draft, Flight
from engine.running.runner import Computed, Runner
from engine.sampling.alignment import AlignedTokens
from engine.sampling.logprobs import LogprobRows
from engine.sampling.pooling import Pool
from engine.sampling.sampler import Sampler, takes_likeliest
from engine.scheduling.batch import build_batch
from engine.scheduling.scheduler import Slice


class Launcher:
    """Has slices computed, and what is wanted of them: tokens, log-probabilities, vectors."""

    def __init__(
        self,
        runner: Runner | EncoderRunner,
        sampler: Sampler,
        device: Device,
        page_size: int,
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._device = device
        self._page_size = page_size

    def launch(self, slices: list[Slice]) -> Flight:
        """Start computing slices, and choosing the tokens that come next."""
        self._sampler.expect([item.sequence for item in slices if item.samples])
        batch = build_batch(slices, self._page_size)
        computed = self._runner.run(batch)
        flight = Flight()
        pooled = [item for item in slices if item.sequence.request.pooling is not None]
        if pooled:
            self._pool(flight, pooled, computed)
        rows: list[int] = []  # of logits, one for each choice
        row = 0
        for item in slices:
            sequence = item.sequence
            if item.wants_prompt_logprobs:
                self._score_prompt(flight, item, computed.logits[row : row + item.count])
                row += item.count
            elif item.draft is not None:
                self._await(flight, item, row)
                row += 1
            elif item.samples:
                row += 1
            if item.samples:
                choice = Choice(sequence, len(sequence.tokens), len(rows))
                flight.choices.append(choice)
                rows.append(row - 1)
        if flight.drafts:
            flight.logits = computed.logits
        if not flight.choices:
            return flight
        likeliest = computed.likeliest if len(rows) == len(batch.logit_rows) else None
        if likeliest and all(takes_likeliest(choice.sequence) for choice in flight.choices):
            self._take(flight, likeliest())
        else:
            self._choose(flight, self._pick(computed.logits, rows))
        return flight

    def follow(self, drafts: list[Draft], logits: torch.Tensor) -> Flight:
        """Choose the tokens behind the next one of each draft, which is its sequence's last token.

        Each is chosen as in a step of its own: by the same logits, when all before it are known.
        """
        flight = Flight()
        flight.choices = [
            Choice(draft.sequence, len(draft.sequence.tokens), row)
            for row, draft in enumerate(drafts)
        ]
        self._choose(flight, self._pick(logits, [draft.row for draft in drafts]))
        return flight

    def _await(self, flight: Flight, item: Slice, row: int) -> None:
        """Note a draft, which follows what it is a draft of."""
        assert item.draft is not None
        if not flight.drafts or flight.drafts[-1].sequence is not item.sequence:
            flight.drafts.append(Draft(item.sequence, [], row))
        flight.drafts[-1].tokens.append(item.draft)

    def _pool(self, flight: Flight, pooled: list[Slice], computed: Computed) -> None:
        """Add rows of hidden states, or of attention, to the vectors that they are part of."""
        assert computed.hidden is not None
        parts = computed.hidden.split([len(item.pooled) for item in pooled])
        aligned = iter(computed.aligned)
        for item, part in zip(pooled, parts, strict=True):
            sequence, wanted = item.sequence, item.sequence.request.alignment
            if sequence.pool is None or item.start == 0:  # anew after a preemption
                sequence.pool = Pool() if wanted is None else AlignedTokens(wanted)
            sequence.pool.add(item.start, part if wanted is None else next(aligned))
            if item.last:
                vector = self._device.download(sequence.pool.vector())
                flight.vectors.append((sequence, vector))

    def _choose(self, flight: Flight, logits: torch.Tensor) -> None:
        """Start choosing the next tokens from their rows of logits."""
        sequences = [choice.sequence for choice in flight.choices]
        latest = self._runner.latest
        tokens = self._sampler.choose(logits, sequences, latest)
        self._take(flight, tokens)
        flight.wanted = [c for c in flight.choices if c.sequence.sampling.logprobs is not None]
        if flight.wanted:
            rows = [choice.row for choice in flight.wanted]
            most = max(choice.sequence.sampling.logprobs or 0 for choice in flight.wanted)
            flight.logprobs = LogprobRows(
                self._pick(logits, rows), self._pick(tokens, rows), most, self._device
            )

    def _take(self, flight: Flight, tokens: torch.Tensor) -> None:
        """Have these be the next tokens, which are known to the device before they are to us."""
        self._runner.latest[: len(tokens)] = tokens
        flight.tokens = self._device.download(tokens)

    def _pick(self, tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
        if len(rows) == len(tensor):
            return tensor
        return tensor[self._device.upload(torch.tensor(rows))]

    def _score_prompt(self, flight: Flight, item: Slice, rows: torch.Tensor) -> None:
        """Row i of a slice gives the log-probability of the prompt token after it."""
        sequence = item.sequence
        following = sequence.request.prompt_ids[item.start + 1 : item.end + 1]
        top = sequence.sampling.prompt_logprobs
        if following and top is not None:
            chosen = self._device.upload(torch.tensor(following))
            found = LogprobRows(rows[: len(following)], chosen, top, self._device)
            flight.prompts.append((item, found))
