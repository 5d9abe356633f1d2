"""Which tokens end an answer: the only place that decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def end_tokens(folder: Path) -> frozenset[int]:
    """Ids that `generation_config.json` names, or else config.json, and the tokenizer's own.

    Its own is `eos_token` of tokenizer_config.json or special_tokens_map.json, as transformers
    reads them; a checkpoint without tokenizer files has none.
    """
    declared = _read(folder / "generation_config.json").get("eos_token_id")
    if declared is None:
        config = _read(folder / "config.json")
        text = config.get("text_config") or {}
        declared = config.get("eos_token_id")
        declared = text.get("eos_token_id") if declared is None else declared
    ids = [declared] if isinstance(declared, int) else list(declared or [])
    own = _own(folder)
    return frozenset(ids if own is None else [*ids, own])


def _own(folder: Path) -> int | None:
    settings = _read(folder / "tokenizer_config.json")
    token = (_read(folder / "special_tokens_map.json") | settings).get("eos_token")
    name = token.get("content") if isinstance(token, dict) else token
    if name is None:
        return None
    for index, listed in (settings.get("added_tokens_decoder") or {}).items():
        if listed["content"] == name:
            return int(index)
    tokenizer = _read(folder / "tokenizer.json")
    for listed in tokenizer.get("added_tokens") or []:
        if listed["content"] == name:
            return int(listed["id"])
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    return vocabulary.get(name) if isinstance(vocabulary, dict) else None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
