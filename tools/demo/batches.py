"""Batches of tensors: encoded examples padded to the longest, drawn while training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tools.demo import marks
from tools.demo.checkpoint import DEVIATION, MEAN, MERGE, PATCH, TEMPORAL
from tools.demo.encoding import Encoded, encode
from tools.demo.generator import KINDS, Example, random_example
from tools.demo.marks import UNLEARNED

# Chats about one example, by its kind: what is shown costs more than a question about it.
CHATS = {
    "look": 8, "count": 7, "place": 9, "read": 4, "images": 8, "pairs": 8, "video": 8, "colours": 8,
    "talk": 4,
}  # fmt: skip


@dataclass(slots=True)
class Batch:
    """Examples padded to the right.

    `ids`, `labels`, `chats` and `answers` `[examples, tokens]`, `positions`
    `[3, examples, tokens]`, `patches` `[patches, channels * 2 * 14 * 14]`, `grids` `[items, 3]`,
    `seen` `[patches, classes]` as in CLASSES, `held` `[picture tokens, COUNTED]`, `words`
    `[picture tokens, WORDS]`, `places` `[examples, tokens, 3]`, `counts` `[examples, COUNTED]`,
    `turns` `[examples, MOST_TURNS]`, `ends` `[examples]`, `found` `[examples, tokens, FOUND]`,
    `nth` and `spelled` `[examples, tokens, 2]`, `before` `[examples, tokens]`.
    `answers` counts on from example to example, through `skills`.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    chats: torch.Tensor
    answers: torch.Tensor
    positions: torch.Tensor
    patches: torch.Tensor
    grids: torch.Tensor
    seen: torch.Tensor
    held: torch.Tensor
    words: torch.Tensor
    places: torch.Tensor
    counts: torch.Tensor
    turns: torch.Tensor
    ends: torch.Tensor
    found: torch.Tensor
    nth: torch.Tensor
    before: torch.Tensor
    spelled: torch.Tensor
    skills: list[str]

    def to(self, device: torch.device) -> Batch:
        held = [getattr(self, part.name) for part in fields(self) if part.name != "skills"]
        return Batch(*(part.to(device) for part in held), skills=self.skills)

    @property
    def visible(self) -> torch.Tensor:
        """Which tokens each one attends to, `[examples, 1, tokens, tokens]`: those before it, of
        its own chat and of what stands before all."""
        own = (self.chats[:, None, :] == self.chats[:, :, None]) | (self.chats[:, None, :] == 0)
        return own.tril()[:, None]


def normalized(patches: np.ndarray) -> torch.Tensor:
    """Return bytes `[patches, values]` as the tower takes them; a patch's values are by channel."""
    each = TEMPORAL * PATCH * PATCH
    scale = torch.tensor([1 / (255 * deviation) for deviation in DEVIATION]).repeat_interleave(each)
    shift = torch.tensor([m / d for m, d in zip(MEAN, DEVIATION, strict=True)])
    return torch.from_numpy(patches) * scale - shift.repeat_interleave(each)


def collate(examples: list[Encoded], pad: int) -> Batch:
    """Return examples as one batch, padded to the longest."""
    shape = (len(examples), max(len(one.ids) for one in examples))
    ids = torch.full(shape, pad)
    labels, answers = torch.full(shape, UNLEARNED), torch.full(shape, UNLEARNED)
    chats = torch.full(shape, UNLEARNED)
    positions = torch.zeros((3, *shape), dtype=torch.long)
    places = torch.full((*shape, 3), UNLEARNED)
    found = torch.full((*shape, len(marks.FOUND)), UNLEARNED)
    before = torch.full(shape, UNLEARNED)
    nth, spelled = (torch.full((*shape, 2), UNLEARNED) for _ in range(2))
    skills: list[str] = []
    for row, one in enumerate(examples):
        length = len(one.ids)
        found[row, :length] = torch.from_numpy(one.found)
        nth[row, :length] = torch.from_numpy(one.nth)
        before[row, :length] = torch.from_numpy(one.before)
        spelled[row, :length] = torch.from_numpy(one.spelled)
        places[row, :length] = torch.from_numpy(one.places)
        ids[row, :length] = torch.tensor(one.ids)
        labels[row, :length] = torch.tensor(one.labels)
        chats[row, :length] = torch.tensor(one.chats)
        counted = torch.tensor(one.answers)
        answers[row, :length] = torch.where(counted == UNLEARNED, counted, counted + len(skills))
        positions[:, row, :length] = torch.from_numpy(one.positions)
        skills += one.skills
    seen = np.concatenate([part for one in examples for part in one.seen])
    return Batch(
        ids,
        labels,
        chats,
        answers,
        positions,
        normalized(np.concatenate([part for one in examples for part in one.patches])),
        torch.tensor([grid for one in examples for grid in one.grids]),
        torch.from_numpy(seen),
        torch.from_numpy(np.concatenate([part for one in examples for part in one.held])),
        torch.from_numpy(marks.words_of(seen.reshape(-1, MERGE**2, len(marks.CLASSES)))),
        places,
        torch.tensor([one.counts for one in examples]),
        torch.tensor([one.turns for one in examples]),
        torch.tensor([one.end for one in examples]),
        found,
        nth,
        before,
        spelled,
        skills,
    )


class Batches:
    """An endless stream of batches of `size` examples; `mixture` weighs their kinds, `chats` are
    those of each example, or as many as its kind has."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        size: int,
        seed: int | str,
        mixture: dict[str, float] = KINDS,
        chats: int | None = None,
    ) -> None:
        self.tokenizer, self.size, self.seed = tokenizer, size, seed
        self.mixture, self.chats = mixture, chats

    def __iter__(self) -> Iterator[Batch]:
        rng, order = random.Random(self.seed), random.Random(0)
        pad = self.tokenizer.pad_token_id
        kinds, weights = list(self.mixture), list(self.mixture.values())
        while True:
            # examples of like length go together: less padding; and processes take lengths in the
            # same order, or they would wait for each other
            coded = [
                encode(self._example(rng, kind), self.tokenizer, rng)
                for kind in rng.choices(kinds, weights, k=self.size * 4)
            ]
            coded.sort(key=lambda one: len(one.ids))
            groups = [coded[at : at + self.size] for at in range(0, len(coded), self.size)]
            order.shuffle(groups)
            for group in groups:
                if any(one.patches for one in group):
                    yield collate(group, pad)

    def _example(self, rng: random.Random, kind: str) -> Example:
        # some hold one chat alone, as the ones that are asked do
        chats = self.chats or (1 if rng.random() < 0.15 else CHATS[kind])
        return random_example(rng, kind, rng.choice((140, 140, 110, 180)), chats=chats)
