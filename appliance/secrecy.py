"""What must not be told to anybody: keys that this server knows in plain."""

from __future__ import annotations

from collections.abc import Iterable

HIDDEN = "***"
SHORTEST = 8  # a shorter text is found everywhere, and is no secret


class Secrecy:
    """Texts that are hidden wherever a client or a library made them part of something else."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts: dict[str, bytes] = {}
        for text in texts:
            self.learn(text)

    def learn(self, text: str) -> None:
        """Hide this from now on."""
        if len(text) >= SHORTEST:
            self._texts[text] = text.encode()

    def hide(self, text: str) -> str:
        """A text without them."""
        for secret in self._texts:
            if secret in text:
                text = text.replace(secret, HIDDEN)
        return text

    def blot(self, data: bytes) -> bytes:
        """As many bytes without them, for what has a length already."""
        for secret in self._texts.values():
            if secret in data:
                data = data.replace(secret, b"*" * len(secret))
        return data
