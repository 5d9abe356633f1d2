"""What the sequences of a step ask for, as columns on the device."""

from __future__ import annotations

from typing import Any

import torch

from engine.device.device import Device
from engine.request import SamplingOptions


class Columns:
    """Made of one `options` for each row of a step; None stands for a column nobody asks for.

    While the same sequences go on, step after step, so do their columns.
    """

    def __init__(self, options: list[SamplingOptions], vocabulary: int, device: Device) -> None:
        def column(values: list[Any], dtype: torch.dtype) -> torch.Tensor:
            return device.upload(torch.tensor(values, dtype=dtype))

        self.options = options
        self.greedy = all(o.temperature == 0 for o in options)
        self.seeded = any(o.seed is not None for o in options)
        self.lasting = [row for row, o in enumerate(options) if o.min_tokens > 0]

        self.penalised = [
            row
            for row, o in enumerate(options)
            if o.repetition_penalty != 1.0 or o.frequency_penalty or o.presence_penalty
        ]
        asking = [options[row] for row in self.penalised]
        self.repeats = any(o.repetition_penalty != 1.0 for o in asking)
        self.counts = any(o.frequency_penalty or o.presence_penalty for o in asking)
        if self.penalised:
            self.penalised_rows = column(self.penalised, torch.int64)
            # [3, rows, 1]: repetition, frequency, presence
            self.penalties = column(
                [
                    [[o.repetition_penalty] for o in asking],
                    [[o.frequency_penalty] for o in asking],
                    [[o.presence_penalty] for o in asking],
                ],
                torch.float32,
            )

        self.bias: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        biased = [(row, t, b) for row, o in enumerate(options) for t, b in o.logit_bias.items()]
        if biased:
            rows, tokens, values = zip(*biased, strict=True)
            places = column([list(rows), list(tokens)], torch.int64)
            self.bias = (places[0], places[1], column(list(values), torch.float32))

        self.top_k: torch.Tensor | None = None
        self.top_p: torch.Tensor | None = None
        self.min_p: torch.Tensor | None = None
        if self.greedy:
            return
        self.greedy_rows = column([o.temperature == 0 for o in options], torch.bool)
        self.temperature = column([o.temperature or 1.0 for o in options], torch.float32)
        if any(0 < o.top_k < vocabulary for o in options):
            limits = [min(o.top_k or vocabulary, vocabulary) for o in options]
            self.top_k = column(limits, torch.int32)
        if any(o.top_p < 1 for o in options):
            self.top_p = column([o.top_p for o in options], torch.float32)
        if any(o.min_p > 0 for o in options):
            self.min_p = column([[o.min_p] for o in options], torch.float32)
