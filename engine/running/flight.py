"""A step that has been launched and whose results the host does not know yet."""

from __future__ import annotations

from dataclasses import dataclass, field

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
class Flight:
    """What a step will have chosen, once the device is done with it."""

    choices: list[Choice] = field(default_factory=list)
    tokens: HostCopy | None = None  # of every choice
    wanted: list[Choice] = field(default_factory=list)  # those whose log-probabilities are wanted
    logprobs: LogprobRows | None = None  # of every wanted choice
    prompts: list[tuple[Slice, LogprobRows]] = field(default_factory=list)
    vectors: list[tuple[Sequence, HostCopy]] = field(default_factory=list)  # pooled prompts
