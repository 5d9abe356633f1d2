"""What each token stands for in bytes, read from the tokenizer's decoder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer as Backend

FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Bytes of tokens for the kinds of vocabulary that language models have.

    Byte-level (GPT-2's table from characters to bytes) and SentencePiece-like (word marks, raw
    bytes as `<0x0A>`); those of WordPiece are as they are written. Raises ValueError for a decoder
    of another kind.
    """

    def __init__(self, backend: Backend, decoder: dict[str, Any] | None) -> None:
        self._backend = backend
        self._known: dict[int, bytes] = {}
        self._byte_of: dict[str, int] = {}
        self._replacements: list[tuple[str, str]] = []
        self._fallback = False
        self.strips_first_space = False
        for step in _steps(decoder):
            self._read_step(step)

    def of(self, token_id: int) -> bytes:
        """The token's bytes; empty outside the vocabulary."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._work_out(token_id)
        return known

    def is_fallback(self, token_id: int) -> bool:
        """Whether the token is one raw byte."""
        if not self._fallback:
            return False
        token = self._backend.id_to_token(token_id)
        return token is not None and FALLBACK.fullmatch(token) is not None

    def _work_out(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_of:
            try:
                return bytes(map(self._byte_of.__getitem__, token))
            except KeyError:
                return token.encode()
        raw = FALLBACK.fullmatch(token) if self._fallback else None
        if raw is not None:
            return bytes([int(raw[1], 16)])
        for pattern, content in self._replacements:
            token = token.replace(pattern, content)
        return token.encode()

    def _read_step(self, step: dict[str, Any]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._byte_of = {chr(point): byte for byte, point in _byte_level_table()}
            case {"type": "ByteFallback"}:
                self._fallback = True
            case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
                self._replacements.append((pattern, content))
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                self.strips_first_space = bool(start)
            case {"type": "Metaspace", "replacement": mark}:
                self._replacements.append((mark, " "))
                self.strips_first_space = step.get("prepend_scheme", "always") != "never"
            case {"type": "Fuse"} | {"type": "WordPiece"}:  # the latter is of models that only read
                pass
            case _:
                raise ValueError(f"tokenizer decoders of type {step.get('type')} are not supported")


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        raise ValueError("the tokenizer has no decoder")
    if decoder["type"] == "Sequence":
        return [inner for step in decoder["decoders"] for inner in _steps(step)]
    return [decoder]


def _byte_level_table() -> Iterator[tuple[int, int]]:
    """Byte and code point in GPT-2's alphabet: printable Latin-1 as it is, others from 256 on."""
    shifted = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            yield byte, byte
        else:
            yield byte, shifted
            shifted += 1
