"""What a media worker says, read as from a stranger: whatever it decoded may have taken it over.

A worker answers with one object of JSON: `tokens` of an item that it was asked to measure;
`tokens`, `tensors` (their layout) and `seconds` of one that it has prepared, whose memory comes
next; or a `refusal`.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from appliance.errors import ApplianceError
from appliance.media.prepare import PARAM
from engine.device.shared_tensors import SharedTensors

LONGEST = 1 << 16  # bytes of an answer
LONGEST_MESSAGE = 1000  # characters of what a client is told
MOST_TOKENS = 1 << 22  # of an item; no prompt is as long
STAGES = ("decode", "preprocess")
REFUSALS = {  # codes of what workers refuse, and their status
    "media_undecodable": 422,
    "media_too_large": 400,
    "invalid_data_url": 400,
    "embedding_invalid": 400,
}


class OddAnswer(Exception):
    """No worker that still does what it was written for says this; the message is ours."""


@dataclass(slots=True, frozen=True)
class Made:
    """An item that is prepared, but for its memory; `seconds` by stage."""

    tokens: int
    tensors: SharedTensors
    seconds: dict[str, float]


def receive(channel: Connection, deadline: float) -> dict[str, Any]:
    """The next message of a worker, whole by `deadline` (of the monotonic clock).

    Raises TimeoutError, EOFError or OSError at its end, and OddAnswer.
    """
    size = int.from_bytes(_read(channel, 4, deadline), "big", signed=True)
    if not 0 < size <= LONGEST:
        raise OddAnswer("a message of another length")
    try:
        said = json.loads(_read(channel, size, deadline), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise OddAnswer("no JSON") from None
    if not isinstance(said, dict):
        raise OddAnswer("no object")
    return said


def check_refusal(said: dict[str, Any]) -> None:
    """Raises ApplianceError if the worker refuses the item, and OddAnswer."""
    if "refusal" not in said:
        return
    refusal = said["refusal"]
    if not isinstance(refusal, dict) or _keys(said) != "refusal":
        raise OddAnswer("a refusal of another form")
    code, message = refusal.get("code"), refusal.get("message")
    if not isinstance(code, str) or code not in REFUSALS or _keys(refusal) != "code message":
        raise OddAnswer("a refusal of another code")
    if not isinstance(message, str) or not 0 < len(message) <= LONGEST_MESSAGE:
        raise OddAnswer("a refusal in too many words, or none")
    if not message.isprintable():
        raise OddAnswer("a refusal in characters that are not shown")
    raise ApplianceError(message, status=REFUSALS[code], code=code, param=PARAM)


def measured(said: dict[str, Any]) -> int | None:
    """Placeholders of an item by its header, None if that does not tell. Raises OddAnswer."""
    if _keys(said) != "tokens":
        raise OddAnswer("a measure of another form")
    return None if said["tokens"] is None else _tokens(said["tokens"])


def made(said: dict[str, Any], most_bytes: int, most_seconds: float) -> Made:
    """A prepared item within these bounds. Raises OddAnswer."""
    if _keys(said) != "seconds tensors tokens":
        raise OddAnswer("an item of another form")
    try:
        tensors = SharedTensors.laid_out(said["tensors"], most_bytes)
    except ValueError as wrong:
        raise OddAnswer(f"tensors that cannot be: {wrong}") from None
    seconds = said["seconds"]
    if not isinstance(seconds, dict) or _keys(seconds) != " ".join(STAGES):
        raise OddAnswer("times of another form")
    for took in seconds.values():
        if type(took) is not float or not math.isfinite(took) or not 0 <= took <= most_seconds:
            raise OddAnswer("a time that it cannot have taken")
    return Made(_tokens(said["tokens"]), tensors, seconds)


def missing(said: dict[str, Any]) -> list[str]:
    """What the first message of a worker says that its sandbox lacks. Raises OddAnswer."""
    listed = said.get("missing")
    if _keys(said) != "missing" or not isinstance(listed, list):
        raise OddAnswer("a beginning of another form")
    return [str(one) for one in listed]


def _read(channel: Connection, size: int, deadline: float) -> bytes:
    """All of `size` bytes, however slowly they come."""
    read = bytearray()
    while len(read) < size:
        if not channel.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        part = os.read(channel.fileno(), size - len(read))
        if not part:
            raise EOFError
        read += part
    return bytes(read)


def _tokens(number: Any) -> int:
    if type(number) is not int or not 0 < number <= MOST_TOKENS:
        raise OddAnswer("a number of tokens that no item has")
    return number


def _keys(said: dict[str, Any]) -> str:
    return " ".join(sorted(said))


def _no_number(_: str) -> float:
    raise ValueError
