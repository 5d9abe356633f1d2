"""How often each token occurs in each sequence, kept on the device from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from engine.device.device import Device
from engine.scheduling.sequence import Sequence

FEWEST_ROWS = 8  # of a first table


def resolve(token_ids: torch.Tensor, latest: torch.Tensor) -> torch.Tensor:
    """Replace tokens in flight by those chosen last; `latest` is indexed by row."""
    return torch.where(token_ids < 0, latest[(-1 - token_ids).clamp_(min=0)], token_ids)


@dataclass(slots=True)
class CountedRow:
    """A sequence's row of the table, which holds the first `counted` of its tokens."""

    row: int
    counted: int = 0


class TokenCounts:
    """A table with a row for each sequence that was asked about, five bytes for each token.

    Asking again adds what has come since, so a step costs the same however long the sequences are.
    A token is counted once, by its value at that time, known or in flight. The row of a sequence
    that is gone is taken by another. There are no more rows than sequences may run: when all are in
    use, that of a sequence outside the step is taken (it was preempted, and is counted anew if it
    comes back).
    """

    def __init__(self, vocabulary: int, device: Device) -> None:
        self._device = device
        self._rows: WeakKeyDictionary[Sequence, CountedRow] = WeakKeyDictionary()
        self._prompt = torch.zeros(0, vocabulary, dtype=torch.bool, device=device.device)
        self._output = torch.zeros(0, vocabulary, device=device.device)

    @property
    def capacity(self) -> int:
        """Rows that memory is held for."""
        return len(self._output)

    @torch.inference_mode()
    def of(
        self, sequences: list[Sequence], latest: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether each token is in the prompts, and how often in the answers, in-flight ones too.

        `[sequences, vocabulary]`, bool and float32. `latest` are the tokens that those in flight
        refer to; as many sequences may run.
        """
        held = self._held(sequences, most=len(latest))
        rows = self._upload([[each.row for each in held]])[0]
        self._count(sequences, held, latest)
        return self._prompt[rows], self._output[rows]

    def _upload(self, numbers: list[list[int]]) -> torch.Tensor:
        return self._device.upload(torch.tensor(numbers, dtype=torch.int64))

    def _held(self, sequences: list[Sequence], most: int) -> list[CountedRow]:
        """The rows of these sequences, those of new ones among them."""
        found = [self._rows.get(sequence) for sequence in sequences]
        missing = found.count(None)
        if not missing:
            return [each for each in found if each is not None]
        self._make_room(sequences, len(self._rows) + missing, most)
        taken = {each.row for each in self._rows.values()}
        free = iter([row for row in range(self.capacity) if row not in taken])
        for sequence, each in zip(sequences, found, strict=True):
            if each is None:
                self._rows[sequence] = CountedRow(next(free))
        return [self._rows[sequence] for sequence in sequences]

    def _make_room(self, sequences: list[Sequence], needed: int, most: int) -> None:
        """Have so many rows, or let rows of sequences outside the step go."""
        limit = max(most, len(sequences))
        if needed > self.capacity and self.capacity < limit:
            capacity = min(max(needed, 2 * self.capacity, FEWEST_ROWS), limit)
            self._prompt = _grown(self._prompt, capacity)
            self._output = _grown(self._output, capacity)
        if needed > self.capacity:
            stay = set(sequences)
            for sequence in [each for each in self._rows if each not in stay]:
                del self._rows[sequence]

    def _count(
        self, sequences: list[Sequence], held: list[CountedRow], latest: torch.Tensor
    ) -> None:
        """Add the tokens that the rows do not hold yet."""
        fresh: list[int] = []
        prompts: list[list[int]] = [[], []]  # rows, tokens
        outputs: list[list[int]] = [[], []]
        for sequence, each in zip(sequences, held, strict=True):
            if not each.counted:
                fresh.append(each.row)
                prompts[0] += [each.row] * sequence.prompt_length
                prompts[1] += sequence.request.prompt_ids
            came = sequence.tokens[max(each.counted, sequence.prompt_length) :]
            outputs[0] += [each.row] * len(came)
            outputs[1] += came
        if fresh:
            (rows,) = self._upload([fresh])
            places = self._upload(prompts)
            self._prompt.index_fill_(0, rows, 0)
            self._output.index_fill_(0, rows, 0)
            self._prompt[places[0], places[1]] = True
        if outputs[0]:
            rows, tokens = self._upload(outputs)
            tokens = resolve(tokens, latest.long())
            ones = torch.ones(len(rows), device=rows.device)
            self._output.index_put_((rows, tokens), ones, accumulate=True)
        # last: where a step fails before, all of it is done again
        for sequence, each in zip(sequences, held, strict=True):
            each.counted = len(sequence.tokens)


def _grown(table: torch.Tensor, rows: int) -> torch.Tensor:
    grown = table.new_zeros(rows, table.shape[1])
    grown[: len(table)] = table
    return grown
