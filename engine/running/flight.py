"""A step that has been launched and whose results the host does not know yet."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from engine.device.device import HostCopy
from engine.sampling.logprobs import LogprobRows
from engine.scheduling.scheduler import Slice
from engine.scheduling.sequence import Sequence


@dataclass(slots=True, frozen=True)
class Choice:
    """A sequence's next token, to become `tokens[position]`; in the step's row of tokens."""

    sequence: Sequence
    position: int
    row: int


@dataclass(slots=True)
class Draft:
    """Tokens that were computed behind a sequence's last one, as if they had come."""

    sequence: Sequence
    tokens: list[int]
    first_row: int  # of the step's logits; a row for the token behind each
    kept: int = 0  # of the tokens; those that came

    @property
    def goes_on(self) -> bool:
        """Whether the token that came last is the next of the draft: its row counts too."""
        sequence = self.sequence
        return (
            sequence.finish_reason is None
            and self.kept < len(self.tokens)
            and sequence.tokens[-1] == self.tokens[self.kept]
        )

    @property
    def row(self) -> int:
        """Of the step's logits: that behind its next token."""
        return self.first_row + self.kept


@dataclass(slots=True)
class Flight:
    """What a step will have chosen, once the device is done with it."""

    begun: float = 0.0  # when it was launched, by the engine's clock
    work: float | None = None  # of prompts in it; None: its time tells nothing of that
    choices: list[Choice] = field(default_factory=list)
    tokens: HostCopy | None = None  # of every choice
    wanted: list[Choice] = field(default_factory=list)  # those whose log-probabilities are wanted
    logprobs: LogprobRows | None = None  # of every wanted choice
    prompts: list[tuple[Slice, LogprobRows]] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    logits: torch.Tensor | None = None  # of the whole step, if there are drafts
    vectors: list[tuple[Sequence, HostCopy]] = field(default_factory=list)  # pooled prompts
