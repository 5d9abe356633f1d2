"""The tokens by which Whisper is told what to do, and those that it never says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models.documents import CheckpointBroken, read_document
from engine.models.languages import LANGUAGES

ANY_TIME = 1 << 16  # more than there are


@dataclass(slots=True, frozen=True)
class WhisperTokens:
    """What generation_config.json says of a checkpoint's special tokens.

    `languages` are by code, empty of a model for English alone; so are `tasks`, by name. Tokens
    from `first_time` on are times, 0.02 s apart.
    """

    start: int
    end: int
    first_time: int
    first_times: int  # of them, with which a transcript may begin
    languages: dict[str, int]
    tasks: dict[str, int]
    never: tuple[int, ...]
    never_first: tuple[int, ...]
    heads: tuple[tuple[int, int], ...] = ()  # (layer, head) that follow what is said; none: unknown

    @property
    def no_speech(self) -> int:
        """The token that stands, where a language would, for sound without speech."""
        return self.first_time - 2

    def language_of(self, token: int) -> str:
        """The code of a language's token."""
        return next(code for code, index in self.languages.items() if index == token)

    def code(self, language: str) -> str | None:
        """The code of a language by its code or its name; None for one that it does not know."""
        given = language.strip().lower()
        code = next((code for code, name in LANGUAGES.items() if name == given), given)
        return code if code in self.languages else None


def whisper_tokens(folder: Path) -> WhisperTokens:
    """Raises CheckpointBroken where generation_config.json lacks what is needed."""
    path = folder / "generation_config.json"
    told = read_document(path)
    try:
        many = bool(told.get("is_multilingual", "lang_to_id" in told))
        first_time = _id(told["no_timestamps_token_id"]) + 1
        latest = told.get("max_initial_timestamp_index")
        return WhisperTokens(
            start=_id(told["decoder_start_token_id"]),
            end=_id(told["eos_token_id"]),
            first_time=first_time,
            first_times=ANY_TIME if latest is None else _id(latest) + 1,
            languages=_named(told["lang_to_id"], "<|", "|>") if many else {},
            tasks=_named(told["task_to_id"]) if many else {},
            never=tuple(map(_id, told.get("suppress_tokens") or ())),
            never_first=tuple(map(_id, told.get("begin_suppress_tokens") or ())),
            heads=tuple((_id(pair[0]), _id(pair[1])) for pair in told.get("alignment_heads") or ()),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointBroken(f"{path} lacks tokens that Whisper is told what to do by") from error


def _named(ids: dict[str, Any], before: str = "", behind: str = "") -> dict[str, int]:
    return {
        name.removeprefix(before).removesuffix(behind): _id(index) for name, index in ids.items()
    }


def _id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise ValueError
    return value
