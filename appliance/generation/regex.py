"""Regular expressions as clients write them."""

from __future__ import annotations

import re

# as Python's `re.ASCII`, JSON schemas and other servers have them
CLASSES = {"d": "0-9", "s": r" \t\n\r\f\v", "w": "A-Za-z0-9_"}
ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def with_ascii_classes(pattern: str) -> str:
    r"""The pattern with `\d`, `\s` and `\w` spelled out: a digit is no digit of every script."""
    return ESCAPED.sub(_spelled_out, pattern)


def _spelled_out(escaped: re.Match[str]) -> str:
    letter = escaped[1]
    characters = CLASSES.get(letter.lower())
    if characters is None:
        return escaped[0]
    return f"[{'' if letter.islower() else '^'}{characters}]"
