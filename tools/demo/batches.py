"""From examples to batches of tensors: patches, tokens, M-RoPE positions and what is learned."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from tools.demo import chat, marks
from tools.demo.checkpoint import (
    DEVIATION,
    FRAME_PIXELS,
    IMAGE_PIXELS,
    MEAN,
    MERGE,
    PATCH,
    TEMPORAL,
)  # fmt: skip
from tools.demo.generator import KINDS, Example, random_example

Grid = tuple[int, int, int]  # pairs of frames, rows and columns of patches
SYSTEMS = ("Answer briefly.", "You are a friendly assistant.", "You see pictures.", "Be short.")
UNLEARNED = -100
SCENES = ("look", "count", "place")  # kinds of one scene


@dataclass(slots=True)
class Encoded:
    """One chat as numbers: `ids`, `labels` of equal length, `positions` `[3, tokens]`.

    `places` `[tokens, 3]` are number, row and column of the tokens of pictures, `counts` what a
    scene has of everything, which is known at token `end`, behind its picture.
    """

    ids: list[int]
    labels: list[int]
    positions: np.ndarray
    patches: list[np.ndarray]
    grids: list[Grid]
    seen: list[np.ndarray]
    places: np.ndarray
    counts: list[int]
    end: int


@dataclass(slots=True)
class Batch:
    """Chats padded to the right.

    `ids` and `labels` `[chats, tokens]`, `positions` `[3, chats, tokens]`, `patches`
    `[patches, channels * 2 * 14 * 14]`, `grids` `[items, 3]`, `seen` `[patches, 5]` as in CLASSES,
    `places` `[chats, tokens, 3]`, `counts` `[chats, COUNTED]`, `ends` `[chats]`.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    patches: torch.Tensor
    grids: torch.Tensor
    seen: torch.Tensor
    places: torch.Tensor
    counts: torch.Tensor
    ends: torch.Tensor
    kinds: list[str]

    def to(self, device: torch.device) -> Batch:
        held = [getattr(self, part.name) for part in fields(self) if part.name != "kinds"]
        return Batch(*(part.to(device) for part in held), kinds=self.kinds)


def patches_of(frames: list[Image.Image], bounds: tuple[int, int]) -> tuple[np.ndarray, Grid]:
    """Return bytes `[patches, values]` and the grid, ordered as by Qwen2-VL's image processor."""
    width, height = frames[0].size
    rows, columns = smart_resize(height, width, PATCH * MERGE, *bounds)
    resized = [frame.resize((columns, rows), Image.Resampling.BICUBIC) for frame in frames]
    pixels = np.stack([np.asarray(frame) for frame in resized])
    if len(frames) == 1:
        pixels = np.repeat(pixels, TEMPORAL, axis=0)
    grid = (len(pixels) // TEMPORAL, rows // PATCH, columns // PATCH)
    cut = pixels.reshape(
        grid[0], TEMPORAL, grid[1] // MERGE, MERGE, PATCH, grid[2] // MERGE, MERGE, PATCH, 3
    )
    ordered = cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return ordered.reshape(grid[0] * grid[1] * grid[2], -1), grid


def normalized(patches: np.ndarray) -> torch.Tensor:
    """Return bytes `[patches, values]` as the tower takes them; a patch's values are by channel."""
    each = TEMPORAL * PATCH * PATCH
    scale = torch.tensor([1 / (255 * deviation) for deviation in DEVIATION]).repeat_interleave(each)
    shift = torch.tensor([m / d for m, d in zip(MEAN, DEVIATION, strict=True)])
    return torch.from_numpy(patches) * scale - shift.repeat_interleave(each)


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Encoded:
    """Return a chat as numbers; only the assistant's words are learned."""
    items = [patches_of([picture], IMAGE_PIXELS) for picture in example.pictures]
    if example.frames:
        items.append(patches_of(example.frames, FRAME_PIXELS))
    seen = [_marked(each, grid) for each, (_, grid) in zip(example.marks, items, strict=False)]
    if example.frames:  # of clips only the chat is learned
        seen.append(np.full((len(items[-1][0]), len(marks.CLASSES)), UNLEARNED))
    shown = chat.shown(len(example.pictures), bool(example.frames))
    system = rng.choice(SYSTEMS) if rng.random() < 0.08 else None
    pieces = [(chat.opening(system), False)]
    for number, turn in enumerate(example.turns):
        text = turn.question
        if number == 0:
            text = text + shown if rng.random() < 0.1 else shown + text
        pieces.append((chat.question(text), False))
        pieces.append((chat.answer(turn.answer), True))
        pieces.append(("\n", False))
    counts = [UNLEARNED] * marks.COUNTED
    if example.kind in SCENES:
        counts = marks.counts(example.marks[0])
    return _tokens(pieces[:-1], items, seen, counts, tokenizer)


def _marked(each: marks.Marks, grid: Grid) -> np.ndarray:
    """Return a picture's labels `[patches, 5]`, ordered as its patches."""
    _, rows, columns = grid
    labels = marks.of_patches(each, rows, columns)
    cut = labels.reshape(rows // MERGE, MERGE, columns // MERGE, MERGE, -1)
    return cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)


def _tokens(
    pieces: list[tuple[str, bool]],
    items: list[tuple[np.ndarray, Grid]],
    seen: list[np.ndarray],
    counts: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> Encoded:
    pads = {tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    grids = [grid for _, grid in items]
    waiting = iter(grids)
    ids: list[int] = []
    labels: list[int] = []
    spans: dict[int, Grid] = {}
    for text, learned in pieces:
        for token in tokenizer.encode(text, add_special_tokens=False):
            times = 1
            if token in pads:
                grid = next(waiting)
                spans[len(ids)] = grid
                times = grid[0] * grid[1] * grid[2] // MERGE**2
            ids += [token] * times
            labels += [token if learned else UNLEARNED] * times
    places = np.full((len(ids), 3), UNLEARNED)
    end = 0
    for number, (start, grid) in enumerate(spans.items()):
        shape = (grid[0], grid[1] // MERGE, grid[2] // MERGE)
        end = start + shape[0] * shape[1] * shape[2]
        places[start:end] = np.indices(shape).reshape(3, -1).T
        places[start:end, 0] += number  # a picture has one frame, a clip is alone
    patches = [patches for patches, _ in items]
    positions = _positions(len(ids), spans)
    return Encoded(ids, labels, positions, patches, grids, seen, places, counts, end)


def _positions(tokens: int, spans: dict[int, Grid]) -> np.ndarray:
    """Return Qwen2-VL's M-RoPE positions `[3, tokens]` (arXiv:2409.12191, section 2.1)."""
    positions = np.zeros((3, tokens), dtype=np.int64)
    index, value = 0, 0
    while index < tokens:
        if index not in spans:
            positions[:, index] = value
            index, value = index + 1, value + 1
            continue
        pairs, rows, columns = spans[index]
        shape = (pairs, rows // MERGE, columns // MERGE)
        count = shape[0] * shape[1] * shape[2]
        positions[:, index : index + count] = np.indices(shape).reshape(3, -1) + value
        index, value = index + count, value + max(shape)
    return positions


def collate(chats: list[Encoded], kinds: list[str], pad: int) -> Batch:
    """Return chats as one batch, padded to the longest."""
    longest = max(len(one.ids) for one in chats)
    ids = torch.full((len(chats), longest), pad)
    labels = torch.full((len(chats), longest), UNLEARNED)
    positions = torch.zeros((3, len(chats), longest), dtype=torch.long)
    places = torch.full((len(chats), longest, 3), UNLEARNED)
    for row, one in enumerate(chats):
        places[row, : len(one.ids)] = torch.from_numpy(one.places)
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        labels[row, : len(one.ids)] = torch.tensor(one.labels)
        positions[:, row, : len(one.ids)] = torch.from_numpy(one.positions)
    patches = [part for one in chats for part in one.patches]
    return Batch(
        ids,
        labels,
        positions,
        normalized(np.concatenate(patches)),
        torch.tensor([grid for one in chats for grid in one.grids]),
        torch.from_numpy(np.concatenate([part for one in chats for part in one.seen])),
        places,
        torch.tensor([one.counts for one in chats]),
        torch.tensor([one.end for one in chats]),
        kinds,
    )


class Batches:
    """An endless stream of batches; `mixture` weighs the kinds of examples."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        size: int,
        seed: int | str,
        mixture: dict[str, float] = KINDS,
        held_out: bool = False,
    ) -> None:
        self.tokenizer, self.size, self.seed = tokenizer, size, seed
        self.mixture, self.held_out = mixture, held_out

    def __iter__(self) -> Iterator[Batch]:
        rng, order = random.Random(self.seed), random.Random(0)
        pad = self.tokenizer.pad_token_id
        kinds, weights = list(self.mixture), list(self.mixture.values())
        while True:
            # chats of like length go together: less padding; and processes take lengths in the
            # same order, or they would wait for each other
            drawn = [
                random_example(rng, kind, rng.choice((140, 140, 110, 180)), held_out=self.held_out)
                for kind in rng.choices(kinds, weights, k=self.size * 4)
            ]
            coded = [(encode(example, self.tokenizer, rng), example.kind) for example in drawn]
            coded.sort(key=lambda pair: len(pair[0].ids))
            groups = [coded[at : at + self.size] for at in range(0, len(coded), self.size)]
            order.shuffle(groups)
            for group in groups:
                if any(one.patches for one, _ in group):
                    yield collate([one for one, _ in group], [kind for _, kind in group], pad)
