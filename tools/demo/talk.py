"""Talk without a picture: what the model says about itself, and that it sees none."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from tools.demo.questions import WORDINGS, Turn, worded

NO_IMAGE = "I see no image. Please send me a picture or a short clip."
TALK: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "talk.yaml").read_text(encoding="utf-8")
)
KINDS_ABOUT_A_PICTURE = (
    "background", "caption", "its shape", "its colour", "count all", "number", "word", "read",
    "direction it", "clip caption", "is it there",
)  # fmt: skip
ABOUT_A_PICTURE = [wording for kind in KINDS_ABOUT_A_PICTURE for wording in WORDINGS[kind]]


def random_talk(rng: random.Random) -> list[Turn]:
    """Return one to three turns without a picture."""
    turns = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.4:
            turns.append(Turn("no image", worded(rng, rng.choice(ABOUT_A_PICTURE)), NO_IMAGE))
        else:
            topic = rng.choice(TALK)
            turns.append(Turn("talk", worded(rng, rng.choice(topic["to"])), topic["answer"]))
    return turns
