"""The checkpoint's tokenizer, with a way to keep what looks like a special token plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from tokenizers.pre_tokenizers import Metaspace, PreTokenizer

from appliance.prompt.shrinking import shrinking
from appliance.prompt.token_bytes import TokenBytes
from appliance.prompt.tokenizer_file import load_backend, whatever_it_raises
from engine.models.documents import CheckpointBroken, optional_document

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class Tokenizer:
    """Text to ids and back, from the tokenizer files of a checkpoint's folder.

    `named_tokens` (`bos_token` and the like) are what chat templates are given. Raises
    CheckpointBroken for files that are no tokenizer; encoding raises TokenizerFailed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.settings = optional_document(self.folder / "tokenizer_config.json")
        self._backend = load_backend(self.folder)
        added = self._backend.get_added_tokens_decoder()
        self.added: dict[str, int] = {token.content: index for index, token in added.items()}
        self.special: dict[str, int] = {
            token.content: index for index, token in added.items() if token.special
        }
        self.special_ids = frozenset(self.special.values())
        self._added = {token.content: token for token in added.values()}
        self._added_ids = frozenset(added)
        self._added_pattern = _pattern(self._added)
        self._inner = _inside_text(self._backend.pre_tokenizer)
        self._alike_inside = not _marks_beginnings(self._backend.pre_tokenizer)
        description = json.loads(self._backend.to_str())
        self._shrinks_by = shrinking(description) * max(map(len, self._backend.get_vocab()))
        self._bytes = TokenBytes(self._backend, description["decoder"])
        self.strips_first_space = self._bytes.strips_first_space
        self.named_tokens = self._named_tokens()

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    def least_tokens(self, characters: int) -> int:
        """How many tokens a text of so many characters has at the least; 0 if it cannot be told."""
        return characters // self._shrinks_by if self._shrinks_by else 0

    def id_of(self, token: str) -> int | None:
        """The id of a token written exactly so."""
        return self._backend.token_to_id(token)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text`; `special` tells whether special tokens count in it, or all is plain."""
        if special:
            return self._ids(text)
        return self._encode_plain(text, first=True)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a raw prompt: special tokens in it count, and the tokenizer adds its own."""
        return self._ids(text, add_special_tokens=True)

    def encode_pair(self, first: str, second: str) -> tuple[list[int], int | None]:
        """Ids of two texts in one prompt as the tokenizer puts them together.

        And where the second begins; None where the tokenizer does not tell them apart.
        """
        encode = partial(self._backend.encode_batch_fast, [(first, second)])
        [encoding] = whatever_it_raises(encode)
        return encoding.ids, encoding.type_ids.index(1) if 1 in encoding.type_ids else None

    def encode_guarded(self, text: str, plain: Sequence[tuple[int, int]]) -> list[int]:
        """As `encode(special=True)`, but added tokens that touch a range in `plain` are plain text.

        Ranges are `(start, end)` in characters, ordered and apart from each other.
        """
        ids: list[int] = []
        start = 0
        for match in self._added_matches(text, plain):
            token = self._added[match[0]]
            before = text[start : match.start()]
            ids += self._encode_plain(before.rstrip() if token.lstrip else before, start == 0)
            ids.append(self.added[match[0]])
            start = match.end()
            if token.rstrip:
                start += len(text[start:]) - len(text[start:].lstrip())
        return ids + self._encode_plain(text[start:], start == 0)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary writes them; empty texts outside of it."""
        name = self._backend.id_to_token
        return [name(token_id) or "" for token_id in ids]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for inside a text; empty outside the vocabulary."""
        return self._bytes.of(token_id)

    def is_byte_fallback(self, token_id: int) -> bool:
        """Whether the token is one raw byte of a SentencePiece-like vocabulary."""
        return self._bytes.is_fallback(token_id)

    def _added_matches(
        self, text: str, plain: Sequence[tuple[int, int]]
    ) -> Iterable[re.Match[str]]:
        position, guard = 0, 0
        while match := self._added_pattern.search(text, position):
            start, end = match.span()
            while guard < len(plain) and plain[guard][1] <= start:
                guard += 1
            if guard < len(plain) and plain[guard][0] < end:
                position = start + 1
                continue
            position = end
            yield match

    def _encode_plain(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        if (first or self._alike_inside) and not self._added_pattern.search(text):
            return self._ids(text)
        ids = self._run_model(text, first)
        if self._added_ids.isdisjoint(ids):
            return ids
        # A vocabulary may hold its special tokens as ordinary pieces: one character is none.
        return [
            index
            for place, character in enumerate(text)
            for index in self._run_model(character, first and place == 0)
        ]

    def _ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """`encode` holds the interpreter's lock all the while, this lets go of it."""
        encode = partial(
            self._backend.encode_batch_fast, [text], add_special_tokens=add_special_tokens
        )
        [encoding] = whatever_it_raises(encode)
        return encoding.ids

    def _run_model(self, text: str, first: bool) -> list[int]:
        return whatever_it_raises(partial(self._pieces, text, first))

    def _pieces(self, text: str, first: bool) -> list[int]:
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splitter = backend.pre_tokenizer if first else self._inner
        pieces = [text] if splitter is None else [p for p, _ in splitter.pre_tokenize_str(text)]
        tokenize = backend.model.tokenize
        return [token.id for piece in pieces for token in tokenize(piece)]

    def _named_tokens(self) -> dict[str, str]:
        settings = optional_document(self.folder / "special_tokens_map.json") | self.settings
        named = {}
        for name in NAMED_TOKENS:
            token = settings.get(name)
            text = token.get("content") if isinstance(token, dict) else token
            if text is not None and not isinstance(text, str):
                raise CheckpointBroken(f"{self.folder}: {name} must be a token's text")
            if text is not None:
                named[name] = text
        return named


def _pattern(contents: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _inside_text(splitter: PreTokenizer | None) -> PreTokenizer | None:
    """The pre-tokenizer for text that does not begin a prompt: no word mark is put before it."""
    if isinstance(splitter, Metaspace) and _marks_beginnings(splitter):
        return Metaspace(splitter.replacement, prepend_scheme="never", split=splitter.split)
    return splitter


def _marks_beginnings(splitter: PreTokenizer | None) -> bool:
    return isinstance(splitter, Metaspace) and splitter.prepend_scheme == "first"
