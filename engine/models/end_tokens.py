"""Which tokens end an answer: the only place that decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.models.documents import CheckpointBroken, optional_document


def end_tokens(folder: Path) -> frozenset[int]:
    """Ids that `generation_config.json` names, or else config.json, and the tokenizer's own.

    Its own is `eos_token` of tokenizer_config.json or special_tokens_map.json, as transformers
    reads them; a checkpoint without tokenizer files has none. Raises CheckpointBroken for what is
    no id.
    """
    declared = optional_document(folder / "generation_config.json").get("eos_token_id")
    if declared is None:
        config = optional_document(folder / "config.json")
        text = config.get("text_config") or {}
        declared = config.get("eos_token_id")
        declared = text.get("eos_token_id") if declared is None else declared
    ids = list(declared) if isinstance(declared, list) else [declared]
    return frozenset(_id(index, folder) for index in [*ids, _own(folder)] if index is not None)


def _id(index: Any, folder: Path) -> int:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 1 << 31:
        raise CheckpointBroken(f"{folder}: eos_token_id must be a token id or a list of them")
    return index


def _own(folder: Path) -> Any:
    settings = optional_document(folder / "tokenizer_config.json")
    token = (optional_document(folder / "special_tokens_map.json") | settings).get("eos_token")
    name = token.get("content") if isinstance(token, dict) else token
    if name is None:
        return None
    path = folder / "tokenizer_config.json"
    for index, listed in _entries(settings.get("added_tokens_decoder"), path):
        if listed.get("content") == name:
            return int(index)
    path = folder / "tokenizer.json"
    tokenizer = optional_document(path)
    for _, listed in _entries(tokenizer.get("added_tokens"), path):
        if listed.get("content") == name:
            return listed.get("id")
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return vocabulary.get(str(name)) if isinstance(vocabulary, dict) else None


def _entries(listed: Any, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Tokens with their ids, as tokenizer_config.json lists them; of a plain list without."""
    pairs = list(listed.items()) if isinstance(listed, dict) else []
    pairs = [("0", entry) for entry in listed] if isinstance(listed, list) else pairs
    if (listed and not pairs) or any(
        not isinstance(entry, dict) or not index.isdecimal() or len(index) > 10
        for index, entry in pairs
    ):
        raise CheckpointBroken(f"{path} lists added tokens in a way that is not known")
    return pairs
