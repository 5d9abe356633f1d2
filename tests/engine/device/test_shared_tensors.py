from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.device.shared_tensors import SEALS, SharedTensors
from engine.request import MediaItem, Request, SamplingOptions

ARRAYS = {
    "pixels": np.arange(3 * 5 * 7, dtype=np.uint8).reshape(3, 5, 7),
    "grid": np.array([[1, 2, 3]], np.int64),
    "half": np.random.default_rng(1).standard_normal((4, 3)).astype(np.float16),
    "turned": np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32).T,
    "empty": np.empty((0, 9), np.float32),
    "number": np.array(2.5, np.float32),
}
TENSORS = {name: torch.from_numpy(array.copy()) for name, array in ARRAYS.items()}


def zeros(count: int) -> NDArray[np.float32]:
    return np.zeros(count, np.float32)


def test_arrays_come_back_as_tensors() -> None:
    shared = SharedTensors.store(ARRAYS)
    shared.check()
    assert list(shared) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert shared[name].dtype == tensor.dtype
        assert torch.equal(shared[name], tensor)


def test_nobody_can_change_what_others_read() -> None:
    shared = SharedTensors.store(ARRAYS)
    with pytest.raises(PermissionError):
        mmap.mmap(shared._handle, shared.nbytes)
    with pytest.raises(PermissionError):
        os.pwrite(shared._handle, b"x", 0)
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(shared._handle, size)
    other = SharedTensors.laid_out(shared.layout())
    other._handle = os.dup(shared._handle)
    shared["pixels"].zero_()
    assert torch.equal(other["pixels"], TENSORS["pixels"])


def test_a_layout_that_does_not_fit_its_memory_is_refused() -> None:
    shared = SharedTensors.store({"a": zeros(16), "b": zeros(16)})
    good = shared.layout()
    huge = 10**4000
    for change in (
        {"size": 0},
        {"size": -good["size"]},
        {"size": True},
        {"size": float(good["size"])},
        {"size": str(good["size"])},
        {"places": None},
        {"places": {"a": ["float32", [16], 0]}},
        {"places": [["a", "float32", [16]]]},
        {"places": [["a", "float32", [33], 0]]},
        {"places": [["a", "float32", [16], -64]]},
        {"places": [["a", "float32", [-16, -1], 0]]},
        {"places": [["a", "float32", [True] * 2, 0]]},
        {"places": [["a", "float32", [16.0], 0]]},
        {"places": [["a", "float32", "16", 0]]},
        {"places": [["a", "float32", [huge], 0]]},
        {"places": [["a", "float32", [0, huge], 0]]},
        {"places": [["a", "float32", [1 << 32, 1 << 32], 0]]},
        {"places": [["a", "float32", [1] * 9, 0]]},
        {"places": [["a", "float32", [1], 4]]},
        {"places": [["a", "float32", [1], False]]},
        {"places": [["a", "float32", [16], good["size"]]]},
        {"places": [["a", "object", [1], 0]]},
        {"places": [["a", ["float32"], [1], 0]]},
        {"places": [[7, "float32", [1], 0]]},
        {"places": [["__class__", "float32", [1], 0]]},
        {"places": [["a", "float32", [1], 0]] * 2},
        {"places": [[f"a{number}", "float32", [1], 0] for number in range(17)]},
        {"more": 1},
    ):
        with pytest.raises(ValueError, match=r"memory|tensor|type|layout|size"):
            SharedTensors.laid_out({**good, **change})
    for none in (None, [], "size", 7, {}):
        with pytest.raises(ValueError, match="layout"):
            SharedTensors.laid_out(none)
    assert SharedTensors.laid_out(good, good["size"])
    for size in (good["size"] + 1, huge):
        with pytest.raises(ValueError, match="size"):
            SharedTensors.laid_out({**good, "size": size}, good["size"])
    shorter = SharedTensors.laid_out({**good, "size": good["size"] + 1})
    shorter._handle = os.dup(shared._handle)
    with pytest.raises(ValueError, match="size"):
        shorter.check()
    unsealed = SharedTensors.laid_out(good)
    unsealed._handle = os.memfd_create("t", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed._handle, good["size"])
    with pytest.raises(ValueError, match="sealed"):
        unsealed.check()
    assert SEALS
    reading, writing = os.pipe()
    for number in (reading, writing, os.open("/", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)):
        other = SharedTensors.laid_out(good)
        other._handle = number
        with pytest.raises(ValueError, match="memory"):
            other.check()


@pytest.mark.parametrize("count", [0, 2, 5])
def test_another_number_of_descriptors_is_refused_and_none_is_left_open(count: int) -> None:
    shared = SharedTensors.store({"a": zeros(16)})
    with pair() as (ours, theirs):
        before = len(handles())
        with socket.socket(fileno=os.dup(ours.fileno())) as channel:
            socket.send_fds(channel, [b"\1"], [shared._handle] * count)
        with pytest.raises(ValueError, match="descriptor"):
            SharedTensors.laid_out(shared.layout()).receive(theirs)
        assert len(handles()) == before


@contextlib.contextmanager
def pair() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, theirs


def test_types_that_are_not_carried_are_refused() -> None:
    for dtype in ("complex64", "object", "str", ">f4"):
        with pytest.raises(ValueError, match="not carried"):
            SharedTensors.store({"a": np.zeros(2, dtype)})


def test_a_request_carries_each_piece_of_memory_once() -> None:
    shared, other = SharedTensors.store(ARRAYS), SharedTensors.store({"a": np.ones(2, np.float32)})
    plain = {"a": torch.zeros(2)}
    media = [
        MediaItem("image", bytes([number]), number, 1, tensors)
        for number, tensors in enumerate((shared, plain, shared, other))
    ]
    request = Request("r", [1] * 4, SamplingOptions(1), media)
    ours, theirs = Pipe()
    ours.send(request)
    for piece in request.shared:
        piece.send(ours, os.getpid())
    received: Request = theirs.recv()
    assert len(received.shared) == 2
    for piece in received.shared:
        piece.receive(theirs)
    assert received.media[0].tensors is received.media[2].tensors
    for sent, came in zip(media, received.media, strict=True):
        assert all(torch.equal(came.tensors[name], sent.tensors[name]) for name in sent.tensors)
    assert not theirs.poll()


def test_memory_is_freed_with_its_last_holder() -> None:
    def held() -> int:
        return sum("memfd:tensors" in os.readlink(one) for one in handles())

    before = held()
    shared = SharedTensors.store(ARRAYS)
    seen = shared["pixels"]
    assert held() > before
    del shared
    assert torch.equal(seen, TENSORS["pixels"]), "a tensor keeps its memory"
    del seen
    assert held() == before


def handles() -> list[Path]:
    return [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
