"""From an example to numbers: patches, tokens, M-RoPE positions and what is known of each."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from tools.demo import chat, marks
from tools.demo import clip as clips
from tools.demo.checkpoint import FRAME_PIXELS, IMAGE_PIXELS, MERGE, PATCH, TEMPORAL
from tools.demo.generator import Example
from tools.demo.marks import UNLEARNED
from tools.demo.questions import Turn, plural

Grid = tuple[int, int, int]  # pairs of frames, rows and columns of patches
SYSTEMS = ("Answer briefly.", "You are a friendly assistant.", "You see pictures.", "Be short.")
MOST_TURNS = 4  # colours of a clip
SCENES = ("look", "count", "place")  # kinds of one scene


@dataclass(slots=True)
class Piece:
    """A part of what stands before all chats (`chat` 0) or of one of them. `skill` of an answer,
    which is learned."""

    text: str
    chat: int = 0
    skill: str | None = None


@dataclass(slots=True)
class Encoded:
    """The chats about one example as numbers, one after another.

    `ids`, `labels`, `chats` and `answers` are of equal length, `positions` `[3, tokens]`. `chats`
    is 0 for what stands before all of them, `answers` which of `skills` a learned token belongs
    to. `places` `[tokens, 3]` are number, row and column of the tokens of pictures, `counts` what
    a scene has of everything and `turns` the colours that a clip shows one after another, which
    are known at token `end`, behind what is shown. `held` are the counts of each picture token,
    `found` `[tokens, FOUND]` what the words of the chats name in what is shown, `nth` `[tokens, 2]`
    the numbers of a clip's colours that a token shows, one for each of its frames, `before`
    `[tokens]` the colour in the frame before these, `spelled` `[tokens, 2]` the characters of a
    text in it, that at an odd place and that at an even one.
    """

    ids: list[int]
    labels: list[int]
    chats: list[int]
    answers: list[int]
    skills: list[str]
    positions: np.ndarray
    patches: list[np.ndarray]
    grids: list[Grid]
    seen: list[np.ndarray]
    held: list[np.ndarray]
    places: np.ndarray
    counts: list[int]
    turns: list[int]
    end: int
    found: np.ndarray
    nth: np.ndarray
    before: np.ndarray
    spelled: np.ndarray


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


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Encoded:
    """Return chats as numbers; only the assistant's words are learned."""
    items = [patches_of([picture], IMAGE_PIXELS) for picture in example.pictures]
    if example.frames:
        items.append(patches_of(example.frames, FRAME_PIXELS))
    grids = [(1, rows, columns) for _, (pairs, rows, columns) in items for _ in range(pairs)]
    seen = [_marked(each, grid) for each, grid in zip(example.marks, grids, strict=True)]
    held = [
        marks.of_tokens(each, rows // MERGE, columns // MERGE).reshape(-1, marks.COUNTED)
        for each, (_, rows, columns) in zip(example.marks, grids, strict=True)
    ]
    counts = [UNLEARNED] * marks.COUNTED
    if example.kind in SCENES:
        counts = marks.counts(example.marks[0])
    turns = [UNLEARNED] * MOST_TURNS
    if example.clip is not None:
        shown = [marks.COLOURS[name] for name in clips.colours_of(example.clip)]
        turns = shown + [0] * (MOST_TURNS - len(shown))
    coded = _tokens(_pieces(example, rng), items, seen, held, (counts, turns), tokenizer)
    pictured = coded.places[:, 0] != UNLEARNED
    if example.kind != "read" and (example.marks or example.clip is not None):
        told = marks.found(example.marks, turns if example.clip is not None else None)
        _tell(coded, told, tokenizer)
    if example.clip is not None:
        numbered = np.concatenate(
            [_numbered(each, part) for each, part in zip(example.marks, seen, strict=True)]
        )
        coded.nth[pictured], coded.before[pictured] = numbered[:, :2], numbered[:, 2]
    if example.kind == "read":
        coded.spelled[pictured] = marks.spelled(seen[0].reshape(-1, MERGE**2, len(marks.CLASSES)))
    return coded


def _numbered(pair: marks.Marks, seen: np.ndarray) -> np.ndarray:
    """Return the numbers of a pair's two colours and the colour before them, `[tokens, 3]`, where
    a token shows them: on the thing, or everywhere without one."""
    covered = (seen.reshape(-1, MERGE**2, seen.shape[-1])[..., 0] > 0).any(-1)
    numbered = np.full((len(covered), 3), UNLEARNED)
    numbered[covered if pair.things else ...] = (*pair.nth, pair.before)
    return numbered


def _tell(coded: Encoded, told: dict[str, marks.Found], tokenizer: PreTrainedTokenizerBase) -> None:
    """Note at every name in the chats what it names; a shape behind a colour names both."""
    names = {
        token: name
        for name, tokens in name_tokens(tokenizer, (*marks.SHAPES, *marks.COLOURS))
        for token in tokens
    }
    before = ""
    for at, token in enumerate(coded.ids):
        name = names.get(token, "") if coded.chats[at] else ""
        both = f"{before} {name}"
        if name:
            coded.found[at] = told.get(both, told.get(name, UNLEARNED))
        before = name


@functools.cache
def name_tokens(
    tokenizer: PreTrainedTokenizerBase, names: tuple[str, ...]
) -> list[tuple[str, list[int]]]:
    """Return the tokens that are a name inside a sentence, or its plural."""
    known = tokenizer.get_vocab()
    return [
        (
            name,
            [known[f"\u0120{form}"] for form in (name, plural(name)) if f"\u0120{form}" in known],
        )
        for name in names
    ]


def _pieces(example: Example, rng: random.Random) -> list[Piece]:
    shown = chat.shown(len(example.pictures), bool(example.frames))
    pieces = [Piece(chat.opening(rng.choice(SYSTEMS) if rng.random() < 0.08 else None) + chat.USER)]
    if len(example.chats) == 1 and rng.random() < 0.5:
        return pieces + _held(example.turns, 0, behind=shown)
    pieces.append(Piece(shown))
    for number, turns in enumerate(example.chats, 1):
        pieces += _held(turns, number)
    return pieces


def _held(turns: list[Turn], number: int, behind: str = "") -> list[Piece]:
    """Return the pieces of one chat, which begins behind "user"; `behind` its first question
    stands what is shown."""
    pieces = []
    for at, turn in enumerate(turns):
        asked = chat.asked(turn.question if at else turn.question + behind)
        pieces += [Piece(f"\n{chat.USER}{asked}" if at else asked, number)]
        pieces += [Piece(chat.answer(turn.answer), number, turn.skill)]
    return pieces


def _marked(each: marks.Marks, grid: Grid) -> np.ndarray:
    """Return the labels `[patches, classes]` of a picture or pair, ordered as its patches."""
    _, rows, columns = grid
    labels = marks.of_patches(each, rows, columns)
    cut = labels.reshape(rows // MERGE, MERGE, columns // MERGE, MERGE, -1)
    return cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)


def _tokens(
    pieces: list[Piece],
    items: list[tuple[np.ndarray, Grid]],
    seen: list[np.ndarray],
    held: list[np.ndarray],
    known: tuple[list[int], list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Encoded:
    pads = {tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    grids = [grid for _, grid in items]
    waiting = iter(grids)
    ids: list[int] = []
    labels: list[int] = []
    chats: list[int] = []
    answers: list[int] = []
    skills: list[str] = []
    spans: dict[int, Grid] = {}
    for piece in pieces:
        answer = UNLEARNED
        if piece.skill is not None:
            answer = len(skills)
            skills.append(piece.skill)
        for token in tokenizer.encode(piece.text, add_special_tokens=False):
            times = 1
            if token in pads:
                grid = next(waiting)
                spans[len(ids)] = grid
                times = grid[0] * grid[1] * grid[2] // MERGE**2
            ids += [token] * times
            labels += [token if piece.skill is not None else UNLEARNED] * times
            chats += [piece.chat] * times
            answers += [answer] * times
    places = np.full((len(ids), 3), UNLEARNED)
    end = 0
    for number, (start, grid) in enumerate(spans.items()):
        shape = (grid[0], grid[1] // MERGE, grid[2] // MERGE)
        end = start + shape[0] * shape[1] * shape[2]
        places[start:end] = np.indices(shape).reshape(3, -1).T
        places[start:end, 0] += number  # a picture has one frame, a clip is alone
    return Encoded(
        ids, labels, chats, answers, skills, _positions(chats, spans),
        [patches for patches, _ in items], grids, seen, held, places, *known, end,
        np.full((len(ids), len(marks.FOUND)), UNLEARNED), np.full((len(ids), 2), UNLEARNED),
        np.full(len(ids), UNLEARNED), np.full((len(ids), 2), UNLEARNED),
    )  # fmt: skip


def _positions(chats: list[int], spans: dict[int, Grid]) -> np.ndarray:
    """Return Qwen2-VL's M-RoPE positions `[3, tokens]` (arXiv:2409.12191, section 2.1); every chat
    goes on from what stands before all."""
    tokens = len(chats)
    positions = np.zeros((3, tokens), dtype=np.int64)
    index, value, shared = 0, 0, 0
    while index < tokens:
        if chats[index] == 0:
            shared = value
        elif chats[index] != chats[index - 1]:
            value = shared
        if index not in spans:
            positions[:, index] = value
            index, value = index + 1, value + 1
        else:
            pairs, rows, columns = spans[index]
            shape = (pairs, rows // MERGE, columns // MERGE)
            count = shape[0] * shape[1] * shape[2]
            positions[:, index : index + count] = np.indices(shape).reshape(3, -1) + value
            index, value = index + count, value + max(shape)
        if chats[index - 1] == 0:
            shared = value
    return positions
