"""Store some of the exam as files for a machine that has nothing to draw it with.

    python -m tools.demo.store_exam

Drawn once, before the model was first asked these, and nothing was left out for its answers. Needs
fonts (README.md); with others the writing comes out otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from bench.exam.questions import DRAWN, TABLE, TYPES, Question
from tools.demo import exam

SKILLS = [skill for skill in exam.SKILLS if skill not in ("transparent", "foreign")]
EACH = 4
SEED = 2026
LARGEST = 20_000  # bytes of what is shown with a question: a checkout carries them


def drawn() -> list[Question]:
    """Return the first questions of `EACH` chats a skill that are small as files."""
    found = []
    for skill in SKILLS:
        chats = exam.chats([skill], 3 * EACH, SEED, [])
        small = [c for c in chats if sum(len(item.data) for item in c.items) <= LARGEST]
        for chat in small[:EACH]:
            turn = chat.turns[0]
            found.append(Question(skill, chat.items, turn.question, turn.answer))
    return found


def store(questions: Sequence[Question], folder: Path) -> None:
    """Write questions that no background decides, in place of those of before."""
    for old in folder.iterdir():
        old.unlink()
    suffixes = {media_type: suffix for suffix, media_type in TYPES.items()}
    numbers = count(1)
    listed = []
    for asked in questions:
        names = []
        for item in asked.items:
            skill = asked.skill.replace(" ", "-")
            names.append(f"{skill}-{next(numbers)}{suffixes[item.media_type]}")
            (folder / names[-1]).write_bytes(item.data)
        told = {"skill": asked.skill, "files": names}
        listed.append(json.dumps({**told, "question": asked.text, "answer": asked.answer}))
    text = "[\n " + ",\n ".join(listed) + "\n]\n"
    (folder / TABLE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    store(drawn(), DRAWN)
