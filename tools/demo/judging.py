"""Whether an answer is right: the same text, or the same in meaning."""

from __future__ import annotations

import math
import re

from tools.demo import palette, shapes
from tools.demo.questions import ORDINALS, plural

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OTHER_WORDS = (
    "nothing", "left", "right", "up", "down", "top", "bottom", "centre", "above", "below",
    "higher", "lower", "larger", "smaller", "largest", "later",
)  # fmt: skip
KEY_WORDS = {
    **{word: word for word in (*palette.NAMES, *shapes.NAMES, *ORDINALS, *OTHER_WORDS)},
    **{plural(shape): shape for shape in shapes.NAMES},
    **{word: str(number) for number, word in enumerate(NUMBERS)},
    "grey": "gray", "center": "centre", "middle": "centre",
}  # fmt: skip
WORD = re.compile(r"[A-Za-z]+|\d+")


def key_words(text: str) -> list[str]:
    """Return what an answer says in order: colours, shapes, numbers, places, text in capitals."""
    found = []
    for place, word in enumerate(WORD.findall(text)):
        small = word.lower()
        if word.isdigit() or (len(word) > 1 and word.isupper()):
            found.append(word)
        elif small in KEY_WORDS:
            found.append(KEY_WORDS[small])
        elif place == 0 and small in ("yes", "no"):
            found.append(small)
    return found


def same_text(answer: str, expected: str) -> bool:
    return answer.strip() == expected


def same_meaning(answer: str, expected: str, question: str) -> bool:
    """Whether both say the same key words, leaving out those that only repeat the question.

    An answer without any, or with none but the question's, must agree in all its words.
    """
    asked = set(key_words(question))
    new = [word for word in key_words(expected) if word not in asked]
    if new:
        return [word for word in key_words(answer) if word not in asked] == new
    if key_words(expected):
        return key_words(answer) == key_words(expected)
    return WORD.findall(answer.lower()) == WORD.findall(expected.lower())


def interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927, score interval)."""
    if count == 0:
        return 0.0, 1.0
    share = right / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    return max(0.0, (middle - spread) / whole), min(1.0, (middle + spread) / whole)
