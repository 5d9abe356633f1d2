"""The tokenizer files of a checkpoint, read as data and checked before any text meets them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from engine.models.documents import CheckpointBroken, optional_document, read_bytes

MOST_GROWTH = 64  # characters that normalizing may make of one
MOST_ID = 1 << 24
LONGEST_TOKEN = 4096
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
PROBES = ("Hello, world! 123", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!", "  \n\n\t  ", "é東京👋")

Made = TypeVar("Made")


class TokenizerFailed(Exception):
    """The tokenizer's own code gave up; what it was given may be of any length."""


def whatever_it_raises(work: Callable[[], Made]) -> Made:
    """What `work` makes with the tokenizers library. Raises TokenizerFailed.

    It raises plain Exception for what it refuses, and where its Rust code panics, on a regular
    expression that backtracks too often for one, an exception that is no Exception at all.
    """
    try:
        return work()
    except Exception as error:
        raise TokenizerFailed(type(error).__name__) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerFailed("PanicException") from error


def load_backend(folder: Path) -> Backend:
    """The tokenizer of a checkpoint. Raises CheckpointBroken for one that cannot be used."""
    path = folder / "tokenizer.json"
    try:
        backend = whatever_it_raises(lambda: _load(path))
        _check_steps(json.loads(backend.to_str()), path)
        whatever_it_raises(lambda: _add_missing(backend, folder / "tokenizer_config.json"))
        whatever_it_raises(lambda: [backend.encode(probe) for probe in PROBES])
    except TokenizerFailed as failure:
        if isinstance(failure.__cause__, CheckpointBroken):
            raise failure.__cause__ from None
        raise CheckpointBroken(f"{path} is missing or no tokenizer that can be used") from failure
    largest = max(backend.get_vocab().values(), default=-1)
    if not 0 <= largest < MOST_ID:
        raise CheckpointBroken(f"{path}: token ids must be from 0 to {MOST_ID - 1}")
    return backend


def _load(path: Path) -> Backend:
    if os.path.lexists(path):
        backend = Backend.from_buffer(read_bytes(path))
    else:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(
            path.parent, trust_remote_code=False, local_files_only=True
        )
        backend = loaded.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def _add_missing(backend: Backend, path: Path) -> None:
    listed = optional_document(path).get("added_tokens_decoder") or {}
    if not isinstance(listed, dict) or not all(map(_is_entry, listed.items())):
        raise CheckpointBroken(f"{path}: added_tokens_decoder must list tokens by their ids")
    for _, token in sorted(listed.items(), key=lambda entry: int(entry[0])):
        if backend.token_to_id(token["content"]) is None:
            flags = {name: token.get(name, default) for name, default in FLAGS.items()}
            normalized = token.get("normalized", True)
            backend.add_tokens([AddedToken(token["content"], normalized=normalized, **flags)])


def _is_entry(entry: tuple[str, Any]) -> bool:
    index, token = entry
    text = token.get("content") if isinstance(token, dict) else None
    if not (isinstance(text, str) and 0 < len(text) <= LONGEST_TOKEN):
        return False
    if not (index.isascii() and index.isdecimal() and len(index) < 10):
        return False
    return all(isinstance(token.get(name, True), bool) for name in (*FLAGS, "normalized"))


def _check_steps(description: dict[str, Any], path: Path) -> None:
    growth = 1.0
    for step in _steps(description.get("normalizer"), "normalizers"):
        if step.get("type") == "Replace":
            pattern = step["pattern"]
            growth *= max(1.0, len(step["content"]) / len(pattern.get("String") or " "))
    if growth > MOST_GROWTH:
        raise CheckpointBroken(
            f"{path}: its normalizer makes texts more than {MOST_GROWTH} times longer"
        )
    steps = [*_steps(description.get("pre_tokenizer"), "pretokenizers")]
    for step in [*steps, *_steps(description.get("normalizer"), "normalizers")]:
        pattern = step.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if regex is not None and repeats_repetition(regex):
            raise CheckpointBroken(
                f"{path}: one of its regular expressions repeats what is itself repeated, which "
                "can take time without end"
            )


def _steps(step: Any, inner: str) -> Iterator[dict[str, Any]]:
    if isinstance(step, dict):
        yield step
        for one in step.get(inner) or []:
            yield from _steps(one, inner)


def repeats_repetition(regex: str) -> bool:
    r"""Whether a regular expression has `(a+)+` or its like, or refers back to a group.

    Published tokenizers have neither; with them a search may take time exponential in the text.
    """
    groups = [False]  # of each open group, whether something in it repeats
    closed = False  # whether what comes right before is a group in which something repeats
    place = 0
    while place < len(regex):
        character, before, closed = regex[place], closed, False
        if character == "\\":
            if regex[place + 1 : place + 2] in "123456789kg":
                return True
            place += 1
        elif character == "[":
            place = _class_end(regex, place)
        elif character == "(":
            groups.append(False)
        elif character == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1] |= closed
        elif character in "+*" or (character == "{" and _repeats(regex[place:])):
            if before:
                return True
            groups[-1] = True
        place += 1
    return False


def _repeats(bounds: str) -> bool:
    """Whether `{…}` allows for more than one; `{` alone stands for itself."""
    inside = bounds[1:].partition("}")[0]
    return inside not in ("", "0", "1", "0,1", ",1") and inside.replace(",", "").isdecimal()


def _class_end(regex: str, start: int) -> int:
    depth, place = 0, start
    while place < len(regex):
        if regex[place] == "\\":
            place += 1
        elif regex[place] == "[":
            depth += 1
        elif regex[place] == "]":
            depth -= 1
            if depth == 0:
                return place
        place += 1
    return place
