"""A checkpoint that names other models for its parts, put together with them in one folder.

Ultravox is published this way: a projector, sometimes a tower, and in config.json the ids of the
text model and the encoder that they were trained with. The folder holds links to the weights of all
of them, an index over those that are used, and a config.json with the parts written out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.config.errors import WeightsError
from appliance.weights.room import alone, unwritable
from engine.errors import ModelUnsupported
from engine.memory.checkpoint import tensor_files
from engine.models.documents import CheckpointBroken, read_bytes, read_document

PARTS = {"text_model_id": "text_config", "audio_model_id": "audio_config"}
PREFIXES = {"text_model_id": "language_model.", "audio_model_id": "audio_tower."}
USED = {"text_model_id": re.compile(""), "audio_model_id": re.compile(r"model\.encoder\.")}
SMALL = ("*.json", "*.jinja", "*.txt", "*.model")
INDEX = "model.safetensors.index.json"


@dataclass(slots=True, frozen=True)
class Base:
    """A model named in a checkpoint's config.json under `key`, and the folder that it is in."""

    key: str
    name: str
    folder: Path


def with_bases(folder: Path, cache: Path, fetch: Callable[[str], Path]) -> Path:
    """The folder itself, or one in `cache` where it is put together with the models it names.

    `fetch` finds the folder of a name. Raises WeightsError for what cannot be put together.
    """
    if not (folder / "config.json").is_file():
        return folder  # the plan will say so
    config = _read(folder / "config.json")
    named = {key: config[key] for key in PARTS if isinstance(config.get(key), str)}
    if not named:
        return folder
    bases = [Base(key, name, _found(folder, key, name, fetch)) for key, name in named.items()]
    try:
        index = _index(folder, bases)
    except ModelUnsupported as error:
        raise WeightsError(str(error)) from error
    config |= dict.fromkeys(named)
    config |= {PARTS[base.key]: _read(base.folder / "config.json") for base in bases}
    return _written(folder, bases, config, index, cache)


def names_others(folder: Path) -> bool:
    """Whether a checkpoint names other models for its parts."""
    try:
        config = read_document(folder / "config.json")
    except ModelUnsupported:
        return False  # the plan will say so
    return any(isinstance(config.get(key), str) for key in PARTS)


def _found(folder: Path, key: str, name: str, fetch: Callable[[str], Path]) -> Path:
    beside = folder / name
    try:
        found = beside.resolve() if beside.is_dir() else fetch(name)
    except WeightsError as error:
        raise WeightsError(f"{folder}/config.json names {name} as its {key}: {error}") from error
    if not (found / "config.json").is_file():
        raise WeightsError(f"{folder}/config.json names {name} as its {key}: it has no config.json")
    return found


def _index(folder: Path, bases: list[Base]) -> dict[str, Path]:
    """The file of every tensor that is used; a checkpoint's own come before those of a base."""
    index = tensor_files(folder)
    adapters = sorted(name for name in index if "lora_" in name)
    if adapters:
        raise WeightsError(
            f"'{folder}' holds adapters ({adapters[0]} …) beside the model they belong to: merge "
            "them into its weights first"
        )
    for base in bases:
        own = [name for name in index if name.startswith(PREFIXES[base.key])]
        theirs = {n: f for n, f in tensor_files(base.folder).items() if USED[base.key].match(n)}
        if own and len(own) < len(theirs):
            raise WeightsError(
                f"'{folder}' holds {len(own)} of the {len(theirs)} tensors of {base.name}, which "
                f"its config.json names as {base.key}: it must hold all of them or none"
            )
        if not own:
            index |= theirs
    return index


def _written(
    folder: Path,
    bases: list[Base],
    config: dict[str, Any],
    index: dict[str, Path],
    cache: Path,
) -> Path:
    """The same folder for the same content of all that is small, and the same files of weights."""
    sources = [base.folder for base in reversed(bases)] + [folder]
    texts: dict[str, bytes] = {}
    for source in sources:  # the checkpoint's own last, in place of what a base has
        for pattern in SMALL if source == folder else ("preprocessor_config.json",):
            for file in source.glob(pattern):
                texts[file.name] = read_bytes(file)
    files = {file: f"{number}-{file.name}" for number, file in enumerate(sorted({*index.values()}))}
    listed = {name: files[file] for name, file in sorted(index.items())}
    texts["config.json"] = _json(config)
    texts[INDEX] = _json({"metadata": {}, "weight_map": listed})
    digest = hashlib.sha256(repr([str(file.resolve()) for file in files]).encode())
    for name, content in sorted(texts.items()):
        digest.update(repr((name, content)).encode())
    put = cache / "weights" / digest.hexdigest()[:16]
    if put.is_dir():  # nothing has to be written then, so that a disk may be read-only
        return put
    with alone(put.with_suffix(".lock"), "these weights"):
        if put.is_dir():
            return put
        partial = put.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
        try:
            partial.mkdir()
            for name, content in texts.items():
                (partial / name).write_bytes(content)
            for file, name in files.items():
                (partial / name).symlink_to(file.resolve())
            os.rename(partial, put)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise unwritable(put.parent, error) from error
    return put


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _read(file: Path) -> Any:
    try:
        return read_document(file)
    except CheckpointBroken as error:
        raise WeightsError(str(error)) from error
