"""Tokens put together to words, with the marks that stand at them.

Source: `split_to_word_tokens` and `merge_punctuations` of openai/whisper (tokenizer.py, timing.py).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

BEFORE = "\"'“¡¿([{-"  # that stand at the word behind them
BEHIND = "\"'.。,，!！?？:：”)]}、"
SPACELESS = frozenset(("zh", "ja", "th", "lo", "my", "yue"))  # languages that set no spaces
BROKEN = "\ufffd"


@dataclass(slots=True)
class Word:
    """Its text, and how many tokens it is of."""

    text: str
    tokens: int


def words_of(
    tokens: Sequence[int], language: str, decode: Callable[[Sequence[int]], str]
) -> list[Word]:
    """The words of tokens that are all text, one after the other; spaces stand before them."""
    pieces = _whole_characters(tokens, decode)
    if language not in SPACELESS:
        pieces = _by_spaces(pieces)
    return _with_marks(pieces)


def _whole_characters(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[Word]:
    """As few tokens each as make whole characters."""
    whole, found, begun, offset = decode(tokens), [], 0, 0
    for end in range(1, len(tokens) + 1):
        text = decode(tokens[begun:end])
        broken = offset + text.index(BROKEN) if BROKEN in text else None
        if broken is None or broken >= len(whole) or whole[broken] == BROKEN:
            found.append(Word(text, end - begun))
            begun, offset = end, offset + len(text)
    if begun < len(tokens) and found:  # half a character at the end
        found[-1].tokens += len(tokens) - begun
    return found


def _by_spaces(pieces: list[Word]) -> list[Word]:
    """A word begins with a space, or is a mark alone."""
    found: list[Word] = []
    for piece in pieces:
        mark = piece.text.strip() in string.punctuation
        if not found or piece.text.startswith(" ") or mark:
            found.append(piece)
        else:
            found[-1].text += piece.text
            found[-1].tokens += piece.tokens
    return found


def _with_marks(words: list[Word]) -> list[Word]:
    """Marks put to the words that they stand at."""
    behind: list[Word] = []
    for word in reversed(words):
        if behind and word.text.startswith(" ") and word.text.strip() in BEFORE:
            behind[-1] = Word(word.text + behind[-1].text, word.tokens + behind[-1].tokens)
        else:
            behind.append(word)
    found: list[Word] = []
    for word in reversed(behind):
        if found and not found[-1].text.endswith(" ") and word.text in BEHIND:
            found[-1] = Word(found[-1].text + word.text, found[-1].tokens + word.tokens)
        else:
            found.append(word)
    return found
