"""The files of a checkpoint that are text, read as data: bounded, and of the shape expected.

Nothing here trusts what a folder holds: a name may lead to a device, a pipe, a file of another
folder, or gigabytes.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from engine.errors import ModelUnsupported
from engine.nesting import nests_deeper

MIB = 1 << 20
MOST_BYTES = 16 * MIB  # published ones have some kilobytes
LARGE = {  # whose size follows the vocabulary or the number of tensors
    "tokenizer.json": 128 * MIB,
    "model.safetensors.index.json": 64 * MIB,
    "vocab.json": 64 * MIB,
    "merges.txt": 64 * MIB,
    "tokenizer.model": 64 * MIB,
}
MOST_DEPTH = 32  # published ones nest to 6


class CheckpointBroken(ModelUnsupported):
    """A file of the checkpoint is missing, or is not what its name says."""


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint. Raises CheckpointBroken with one line."""
    text = read_bytes(path)
    try:
        content = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise CheckpointBroken(f"{path} nests deeper than {MOST_DEPTH}") from error
    except ValueError as error:
        raise CheckpointBroken(f"{path} is missing or not JSON") from error
    if not isinstance(content, dict):
        raise CheckpointBroken(f"{path} is not a JSON object")
    if nests_deeper(content, MOST_DEPTH):
        raise CheckpointBroken(f"{path} nests deeper than {MOST_DEPTH}")
    return content


def optional_document(path: Path) -> dict[str, Any]:
    """The same of a file that a checkpoint may go without: nothing is in it then."""
    return read_document(path) if os.path.lexists(path) else {}


def read_text(path: Path) -> str:
    """A file of a checkpoint as UTF-8 text. Raises CheckpointBroken with one line."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointBroken(f"{path} is not UTF-8 text") from error


def read_bytes(path: Path) -> bytes:
    """All of a file that is no larger than one of its name may be; CheckpointBroken otherwise."""
    most = LARGE.get(path.name, MOST_BYTES)
    check_inside(path)
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as stream:
        try:
            content = stream.read(most + 1)
        except OSError as error:
            raise CheckpointBroken(f"{path} cannot be read") from error
    if len(content) > most:
        raise CheckpointBroken(f"{path} is larger than {most // MIB} MiB")
    return content


def check_readable(path: Path) -> None:
    """Raise CheckpointBroken for a file that `read_bytes` would not read; reads nothing."""
    check_inside(path)
    descriptor = open_regular(path)
    length = os.fstat(descriptor).st_size
    os.close(descriptor)
    most = LARGE.get(path.name, MOST_BYTES)
    if length > most:
        raise CheckpointBroken(f"{path} is larger than {most // MIB} MiB")


def open_regular(path: Path) -> int:
    """A descriptor of a regular file; opening anything else could wait for ever, or do things.

    Raises CheckpointBroken for what is missing or is no regular file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointBroken(f"{path} is not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        kind = "safetensors" if path.suffix == ".safetensors" else "JSON"
        what = f"a {kind} file" if kind == "safetensors" else kind
        raise CheckpointBroken(f"{path} is missing or not {what}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # replaced in between
        os.close(descriptor)
        raise CheckpointBroken(f"{path} is not a regular file")
    return descriptor


def check_inside(path: Path) -> None:
    """Raise CheckpointBroken for a link that leads out of the folder of the checkpoint.

    What text files say can reach clients, in a chat template for one, so a checkpoint must not be
    able to choose them. Snapshots of the model hub are links into `blobs` beside `snapshots`.
    """
    folder = path.parent.resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise CheckpointBroken(f"{path} is a link that leads nowhere") from error
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise CheckpointBroken(f"{path} is a link out of its folder: copy the file instead")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number that no double holds")
    return number
