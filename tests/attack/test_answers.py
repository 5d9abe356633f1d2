"""A media worker that is taken over says whatever it likes: it costs one item, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from appliance.errors import ApplianceError
from appliance.media.answer import LONGEST, LONGEST_MESSAGE
from appliance.media.item_bytes import ItemBytes
from appliance.media.pool import MediaPool, Ready
from appliance.media.prepare import MediaTask
from appliance.media.worker import WorkerSettings
from appliance.metrics import Metrics
from bench.reference import Recorder, engine_options, greedy, picture, prompt_with_images
from engine.core import Engine
from engine.device.shared_tensors import SharedTensors
from engine.errors import RequestRefused
from engine.request import MediaItem, Request
from tests.media.policies import settings

SECONDS = 1.0
MOST_BYTES = 1 << 20
ARRAYS = {"pixels": np.arange(16, dtype=np.uint8)}
Behaviour = Callable[["Worker"], object]


class Worker(threading.Thread):
    """The other end of a connection, which behaves once an order came."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(daemon=True)
        ours, theirs = socket.socketpair()
        self.server = Connection(ours.detach())
        self.channel = Connection(theirs.detach())
        self.ended = threading.Event()
        self._behaviour = behaviour

    def run(self) -> None:
        with self.channel, contextlib.suppress(OSError, EOFError):
            self.say({"missing": []})
            self.channel.recv()
            os.close(recv_handle(self.channel))
            self._behaviour(self)
            self.ended.wait(20)

    def say(self, said: Any) -> None:
        self.raw(json.dumps(said).encode())

    def raw(self, said: bytes) -> None:
        self.channel.send_bytes(said)

    def give(self, *handles: int, message: bytes = b"\1") -> None:
        with socket.socket(fileno=os.dup(self.channel.fileno())) as channel:
            socket.send_fds(channel, [message], handles)


class Workers:
    """A fork server whose first worker is a stranger's and whose others are well."""

    def __init__(self, first: Behaviour) -> None:
        self.made: list[Worker] = []
        self._first = first

    def start(self) -> None:
        pass

    def begin(self, number: int) -> Connection:
        worker = Worker(well if self.made else self._first)
        self.made.append(worker)
        worker.start()
        return worker.server

    def end(self, number: int) -> None:
        for worker in self.made:
            worker.ended.set()

    def stop(self) -> None:
        self.end(0)


def answer(**changes: Any) -> dict[str, Any]:
    """As a worker answers that is well, but for these changes."""
    shared = SharedTensors.store(ARRAYS)
    said = {
        "tokens": 4,
        "tensors": shared.layout(),
        "seconds": {"decode": 0.1, "preprocess": 0.2},
    }
    return said | changes


def layout(**changes: Any) -> dict[str, Any]:
    return answer()["tensors"] | changes


def well(worker: Worker) -> None:
    shared = SharedTensors.store(ARRAYS)
    worker.say(answer())
    shared.send(worker.channel, os.getpid())


def says(**changes: Any) -> Behaviour:
    """An answer that is odd in one thing, with memory that is as it should be."""

    def behaviour(worker: Worker) -> None:
        shared = SharedTensors.store(ARRAYS)
        worker.say(answer(**changes))
        worker.give(shared._handle)

    return behaviour


def refuses(**changes: Any) -> Behaviour:
    refusal = {"code": "media_undecodable", "message": "It is damaged."} | changes
    return lambda worker: worker.say({"refusal": refusal})


def place(**changes: Any) -> Behaviour:
    fields = {"name": "pixels", "dtype": "uint8", "shape": [16], "offset": 0} | changes
    return says(tensors=layout(places=[list(fields.values())]))


def hands_over(*made: Callable[[], int]) -> Behaviour:
    """An answer as it should be, with other descriptors."""

    def behaviour(worker: Worker) -> None:
        handles = [make() for make in made]
        worker.say(answer())
        worker.give(*handles)
        for handle in handles:
            os.close(handle)

    return behaviour


def sealed() -> int:
    shared = SharedTensors.store(ARRAYS)
    return os.dup(shared._handle)


def unsealed() -> int:
    handle = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(handle, 16)
    return handle


def fifo() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def opened(path: str) -> Callable[[], int]:
    return lambda: os.open(path, os.O_RDONLY)


ENDLESS = 10**4000
ODD: dict[str, Behaviour] = {
    "no JSON": lambda worker: worker.raw(b"pixels"),
    "no text": lambda worker: worker.raw(b"\xff\xfe"),
    "nothing": lambda worker: worker.raw(b""),
    "a list": lambda worker: worker.say([4]),
    "a number": lambda worker: worker.say(4),
    "null": lambda worker: worker.say(None),
    "deep brackets": lambda worker: worker.raw(b"[" * (LONGEST - 1)),
    "an endless number": lambda worker: worker.raw(b'{"tokens": ' + b"9" * 60_000 + b"}"),
    "a long message": lambda worker: worker.raw(b" " * (LONGEST + 1)),
    "a negative length": lambda worker: os.write(worker.channel.fileno(), b"\xff\xff\xff\xf0"),
    "a length of eight bytes": lambda worker: os.write(
        worker.channel.fileno(), b"\xff" * 4 + b"\x7f" * 8
    ),
    "more than there is": says(more=1),
    "what was not asked": lambda worker: worker.say({"tokens": 4}),
    "negative tokens": says(tokens=-1),
    "no tokens": says(tokens=0),
    "tokens without end": says(tokens=ENDLESS),
    "many tokens": says(tokens=1 << 23),
    "true tokens": says(tokens=True),
    "half a token": says(tokens=4.5),
    "tokens in words": says(tokens="4"),
    "tokens in a list": says(tokens=[4]),
    "tokens that are null": says(tokens=None),
    "no layout": says(tensors=None),
    "a layout in words": says(tensors="pixels"),
    "memory without end": says(tensors=layout(size=ENDLESS)),
    "more memory than an item may take": says(tensors=layout(size=MOST_BYTES + 1)),
    "no memory": says(tensors=layout(size=0)),
    "negative memory": says(tensors=layout(size=-1)),
    "more memory than there is": says(tensors=layout(size=17)),
    "places without end": says(tensors=layout(places=[["a", "uint8", [1], 0]] * 1000)),
    "a place of another form": says(tensors=layout(places=[7])),
    "a name of another type": place(name=7),
    "a name of Python's": place(name="__class__"),
    "a long name": place(name="a" * 65),
    "an unknown type": place(dtype="object"),
    "a type of another type": place(dtype={}),
    "a negative length of a tensor": place(shape=[-1]),
    "a length without end": place(shape=[ENDLESS]),
    "lengths whose product wraps": place(shape=[1 << 32, 1 << 32]),
    "a true length": place(shape=[True]),
    "a length in words": place(shape=["16"]),
    "many dimensions": place(shape=[1] * 9),
    "a shape in words": place(shape="16"),
    "a negative offset": place(offset=-64),
    "an offset between": place(offset=1),
    "an offset beyond": place(offset=64),
    "times that are none": says(seconds=None),
    "times that are missing": says(seconds={"decode": 0.1}),
    "times that are more": says(seconds={"decode": 0.1, "preprocess": 0.1, "x": 0.1}),
    "a negative time": says(seconds={"decode": -0.1, "preprocess": 0.1}),
    "a time that is no number": lambda worker: worker.raw(
        json.dumps(answer(seconds={"decode": float("nan"), "preprocess": 0.1})).encode()
    ),
    "a time without end": lambda worker: worker.raw(
        json.dumps(answer(seconds={"decode": float("inf"), "preprocess": 0.1})).encode()
    ),
    "a time in exponents": lambda worker: worker.raw(
        json.dumps(answer()).replace("0.1", "1e999").encode()
    ),
    "a time in words": says(seconds={"decode": "0.1", "preprocess": 0.1}),
    "a refusal in words": lambda worker: worker.say({"refusal": "no"}),
    "a refusal with a status": refuses(status=200),
    "a refusal and an item": lambda worker: worker.say(
        answer(refusal={"code": "media_undecodable", "message": "no"})
    ),
    "a code of its own": refuses(code="x" * 20),
    "a code of the server's": refuses(code="invalid_api_key"),
    "a code of another type": refuses(code=["media_undecodable"]),
    "a code that is null": refuses(code=None),
    "no message": refuses(message=""),
    "a message of another type": refuses(message=7),
    "a long refusal": refuses(message="a" * (LONGEST_MESSAGE + 1)),
    "a refusal of several lines": refuses(message="no\nHTTP/1.1 200 OK"),
    "a refusal that colours a terminal": refuses(message="\x1b[31mno"),
    "a refusal with half a character": refuses(message="\ud800"),
    "a refusal that turns text round": refuses(message="\u202eno"),
    "two descriptors": hands_over(sealed, sealed),
    "seven descriptors": hands_over(*[sealed] * 7),
    "no descriptor": lambda worker: (worker.say(answer()), worker.give()),
    "memory that is not sealed": hands_over(unsealed),
    "a fifo": hands_over(fifo),
    "a folder": hands_over(opened("/")),
    "a device": hands_over(opened("/dev/zero")),
    "a file": hands_over(opened(__file__)),
    "a socket": hands_over(lambda: socket.socket().detach()),
}
DIED: dict[str, Behaviour] = {
    "an end": lambda worker: worker.ended.set(),
    "an end in the middle": lambda worker: (
        os.write(worker.channel.fileno(), b"\0\0\0\x09{"),
        worker.ended.set(),
    ),
    "an end before the memory": lambda worker: (worker.say(answer()), worker.ended.set()),
}


def dripping(worker: Worker) -> None:
    os.write(worker.channel.fileno(), b"\0\0\0\x7f")
    while True:
        os.write(worker.channel.fileno(), b" ")
        time.sleep(SECONDS / 5)


LATE: dict[str, Behaviour] = {
    "silence": lambda worker: None,
    "half a length": lambda worker: os.write(worker.channel.fileno(), b"\0\0"),
    "half a message": lambda worker: os.write(worker.channel.fileno(), b"\0\0\0\x09{"),
    "a byte now and then": dripping,
    "no memory after the answer": lambda worker: worker.say(answer()),
}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def pool(first: Behaviour) -> Iterator[tuple[MediaPool, Workers, Metrics, asyncio.Runner]]:
    metrics, made = Metrics(), Workers(first)
    told = WorkerSettings("/nowhere", ("image",), settings(), MOST_BYTES, 30)
    there = MediaPool(told, workers=1, places=9, seconds=SECONDS, metrics=metrics)
    there._fork_server = made  # type: ignore[assignment]
    with asyncio.Runner() as runner:
        runner.run(there.start())
        yield there, made, metrics, runner
        runner.run(there.stop())


def cost(first: Behaviour, cause: str) -> ApplianceError:
    """What an item is told that meets such a worker; the next meets another, and nothing leaks."""
    before = descriptors()
    with pool(first) as (there, made, metrics, runner):
        with pytest.raises(ApplianceError) as refused:
            runner.run(there.prepare(MediaTask("image", ItemBytes(b"item"))))
        item = runner.run(there.prepare(MediaTask("image", ItemBytes(b"item"))))
        assert isinstance(item, Ready)
        assert np.array_equal(item.tensors["pixels"], ARRAYS["pixels"])
        assert len(made.made) == 2, "it was replaced"
        count = metrics.registry.get_sample_value(
            "appliance_media_workers_replaced_total", {"cause": cause}
        )
        assert count == 1
        for worker in made.made:
            worker.ended.set()
            worker.join(20)
            worker.server.close()
        del item, worker
    deadline = time.monotonic() + 5
    while descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() <= before, "a descriptor was left open"
    return refused.value


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_costs_its_item_a_422_and_the_worker_is_replaced(name: str) -> None:
    error = cost(ODD[name], "odd")
    assert (error.status, error.code) == (422, "media_undecodable")
    assert error.message == "The image cannot be decoded."


@pytest.mark.parametrize("name", DIED)
def test_an_answer_that_breaks_off_costs_its_item_a_422(name: str) -> None:
    error = cost(DIED[name], "died")
    assert (error.status, error.code) == (422, "media_undecodable")


@pytest.mark.parametrize("name", LATE)
def test_an_answer_that_does_not_end_costs_its_item_a_504(name: str) -> None:
    begun = time.monotonic()
    error = cost(LATE[name], "timeout")
    assert (error.status, error.code) == (504, "media_timeout")
    assert time.monotonic() - begun < 10 * SECONDS


def test_a_measure_is_a_number_of_tokens_or_none() -> None:
    for said, expected in (({"tokens": 4}, 4), ({"tokens": None}, None)):
        with pool(lambda worker: worker.say(said)) as (there, _, _, runner):  # noqa: B023 - called before the next turn
            assert runner.run(there.probe(MediaTask("image", ItemBytes(b"item")))) == expected
    for wrong in (-1, 0, True, 1.5, "4", [], ENDLESS):
        with pool(lambda worker: worker.say({"tokens": wrong})) as (there, _, _, runner):  # noqa: B023 - called before the next turn
            with pytest.raises(ApplianceError) as refused:
                runner.run(there.probe(MediaTask("image", ItemBytes(b"item"))))
            assert refused.value.status == 422


def test_a_refusal_that_workers_make_is_passed_on() -> None:
    for code, status in (("media_undecodable", 422), ("media_too_large", 400)):
        with pool(refuses(code=code)) as (there, made, _, runner):
            with pytest.raises(ApplianceError) as refused:
                runner.run(there.prepare(MediaTask("image", ItemBytes(b"item"))))
            assert (refused.value.status, refused.value.code) == (status, code)
            assert refused.value.message == "It is damaged."
            assert len(made.made) == 1


def test_an_answer_that_nobody_asked_for_answers_nobody() -> None:
    again = threading.Event()

    def twice(worker: Worker) -> None:
        well(worker)
        worker.say(answer(tokens=999))
        again.set()

    with pool(twice) as (there, made, _, runner):
        items = []
        for _ in range(2):
            items.append(runner.run(there.prepare(MediaTask("image", ItemBytes(b"item")))))
            assert again.wait(5)
        assert [item.tokens for item in items] == [4, 4]
        assert len(made.made) == 2


@pytest.fixture(scope="module")
def qwen2_vl(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen2_vl")


def grid(*numbers: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor([numbers], dtype=dtype)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3"])
def test_tensors_that_do_not_fit_end_their_request_and_not_the_engine(
    family: str, checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint(family)
    engine = Engine(engine_options(folder))
    recorder = Recorder(engine)
    tokens, media = prompt_with_images(folder, [[5, 6, 7], picture(60, 90, 1), [8, 9]])
    good = media[0]
    recorder.run(Request("alone", tokens, greedy(4), [good]))
    pixels, hidden = good.tensors["pixels"], engine._runner.hidden
    wrong: list[dict[str, Any]] = [
        {},
        {"pixels": None},
        {"pixels": pixels.float()},
        {"pixels": pixels[..., :-1]},
        {"pixels": pixels[None]},
        {"pixels": torch.tensor(7, dtype=torch.uint8)},
        {"pixels": torch.cat([pixels, pixels])},
        {"pixels": pixels.flatten()},
        {"embeds": torch.zeros(good.length, hidden + 1)},
        {"embeds": torch.zeros(good.length + 1, hidden)},
        {"embeds": torch.zeros(good.length, hidden, dtype=torch.int64)},
        {"embeds": torch.full((good.length, hidden), float("nan"))},
    ]
    if family == "qwen2_vl":
        rows, columns = good.tensors["image_grid_thw"][0, 1:].tolist()
        wrong += [
            {"image_grid_thw": value}
            for value in (
                None,
                grid(1, columns, columns),
                grid(1, rows * 2, columns),
                grid(1, 1 << 40, 1 << 40),
                grid(1, -rows, -columns),
                grid(0, rows, columns),
                grid(1, rows, columns, dtype=torch.int32),
                grid(1, rows),
                torch.tensor([1, rows, columns]),
                torch.empty(1, 3),
            )
        ]
    for number, changes in enumerate(wrong):
        tensors = {**good.tensors, **changes} if changes else {}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        item = MediaItem("image", f"bad {number}".encode(), good.start, good.length, tensors)
        with pytest.raises(RequestRefused, match="do not fit"):
            engine.add(Request(f"bad {number}", tokens, greedy(4), [item]))
    longer = replace(good, length=good.length - 1)
    with pytest.raises(RequestRefused, match="do not fit"):
        engine.add(Request("longer", tokens, greedy(4), [longer]))
    recorder.run(Request("after", tokens, greedy(4), [good]))
    assert recorder.tokens["after", 0] == recorder.tokens["alone", 0]
    assert engine.stats().pages_used == 0
