"""How much of a text may be gone before its tokens are counted."""

from __future__ import annotations

from typing import Any

# Composing characters (Unicode Standard, annex 15) joins at most four, into one of two bytes or
# more; the other steps leave a character for each, and what splits keeps every character.
NORMALIZERS = {"NFC": 2, "Prepend": 1, "ByteLevel": 1}
SPLITTERS = frozenset({"ByteLevel", "Metaspace", "Digits"})
KEEPING = frozenset({"Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"})


def shrinking(tokenizer: dict[str, Any]) -> int:
    """By how many its characters may be divided, at most, before a model of tokens sees them.

    `tokenizer` is what tokenizer.json says. 0 where there is no such bound: text that is dropped,
    folded, or joined into one token for all that is unknown.
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE" or (model.get("fuse_unk") and not model.get("byte_fallback")):
        return 0
    factor = 1
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        if step["type"] == "Replace":
            pattern, content = step["pattern"].get("String"), step["content"]
            if pattern is None or len(content) < len(pattern):
                return 0
        elif step["type"] not in NORMALIZERS:
            return 0
        else:
            factor *= NORMALIZERS[step["type"]]
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] in ("Split", "Punctuation"):
            if step["behavior"] not in KEEPING:
                return 0
        elif step["type"] not in SPLITTERS:
            return 0
    return factor


def _steps(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [one for part in step[inner] for one in _steps(part, inner)]
    return [step]
