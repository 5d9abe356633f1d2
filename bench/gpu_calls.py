"""What the served demo is asked, as requests over HTTP."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bench.exam.questions import BACKGROUNDS, Item, Question, laid
from bench.gpu_demo import COLOURS, QUESTIONS, SHAPES, draw
from bench.load import Call

MAX_TOKENS = 40
EXAM_TOKENS = 80  # more than any answer has
SERVED_ON = next(iter(BACKGROUNDS))


def about_shapes(count: int, **options: object) -> list[Call]:
    """Questions about as many different pictures."""
    looks = itertools.product(range(120, 400, 8), SHAPES, COLOURS)
    made = []
    for place, (side, shape, colour) in enumerate(itertools.islice(looks, count)):
        held = io.BytesIO()
        behind = COLOURS[(COLOURS.index(colour) + 1) % len(COLOURS)]
        draw(shape, colour, behind, (side, 140)).save(held, "PNG")
        item = Item("image", held.getvalue(), "image/png")
        made.append(_call([item], QUESTIONS[place % len(QUESTIONS)], **options))
    return made


def of_exam(questions: Iterable[Question]) -> list[Call]:
    """A request for each question, to a server with the first of `BACKGROUNDS`.

    That server composites what is asked of its own background; what is asked of another comes laid
    on it, or each would take a server of its own.
    """
    return [
        _call(_shown(asked), asked.text, temperature=0, max_tokens=EXAM_TOKENS)
        for asked in questions
    ]


def astray(questions: Sequence[Question]) -> list[Question]:
    """The questions with items, each about those of the one half the exam away.

    Its neighbours show the same, or something like it.
    """
    shown = [asked for asked in questions if asked.items]
    others = (*shown[len(shown) // 2 :], *shown[: len(shown) // 2])
    return [
        replace(asked, items=other.items, background=other.background)
        for asked, other in zip(shown, others, strict=True)
    ]


def _shown(asked: Question) -> Sequence[Item]:
    if asked.background in (None, SERVED_ON):
        return asked.items
    return [laid(item, asked.background) for item in asked.items]


def _call(items: Sequence[Item], text: str, **options: object) -> Call:
    content: list[dict[str, Any]] = []
    for item in items:
        url = f"data:{item.media_type};base64,{base64.b64encode(item.data).decode()}"
        content.append({"type": f"{item.modality}_url", f"{item.modality}_url": {"url": url}})
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
    return Call("/v1/chat/completions", json.dumps(body).encode())
