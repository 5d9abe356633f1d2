"""Token ids to text while they come, never half a character."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable

from appliance.prompt.tokenizer import Tokenizer

Utf8 = getincrementaldecoder("utf-8")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Text of one answer; all of it together equals `tokenizer.decode` of all ids.

    Bytes that are no UTF-8 become U+FFFD: one for each maximal part in a byte-level vocabulary, one
    for each byte in a SentencePiece-like one. (There the tokenizers library also gives up the valid
    characters next to them, which cannot be known while streaming.) Special tokens in `shown` are
    not skipped. `continuing` keeps the space that such a vocabulary drops at the beginning of a
    text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
        continuing: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - shown if skip_special_tokens else frozenset()
        self._strip = tokenizer.strips_first_space and not continuing
        self._utf8 = Utf8("replace")
        self._raw = b""  # raw byte tokens that are no whole character yet

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete."""
        pieces = [self._piece(token_id) for token_id in ids if token_id not in self._skipped]
        return self._shown("".join(pieces))

    def finish(self) -> str:
        """What was held back as the beginning of a character that never came whole."""
        return self._shown(self._end_of_raw() + self._utf8.decode(b"", final=True))

    def _piece(self, token_id: int) -> str:
        data = self._tokenizer.token_bytes(token_id)
        if not self._tokenizer.is_byte_fallback(token_id):
            # an id outside the vocabulary is no token at all
            return self._end_of_raw() + self._utf8.decode(data) if data else ""
        self._raw += data
        return self._whole_characters()

    def _whole_characters(self) -> str:
        text = ""
        while self._raw:
            try:
                whole, self._raw = self._raw.decode(), b""
                return text + whole
            except UnicodeDecodeError as error:
                text += self._raw[: error.start].decode()
                self._raw = self._raw[error.start :]
                if error.reason == "unexpected end of data":
                    return text
                text += REPLACEMENT
                self._raw = self._raw[1:]
        return text

    def _end_of_raw(self) -> str:
        held, self._raw = len(self._raw), b""
        return REPLACEMENT * held

    def _shown(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text
