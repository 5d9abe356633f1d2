"""What is asked of torch where a card would be, told by a torch.cuda that only listens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from engine.device.device import Cuda


class Stream:
    """A stream as torch makes it, counted."""

    made = 0

    def __init__(self, device: torch.device | None = None) -> None:
        Stream.made += 1
        self.number = Stream.made

    def wait_stream(self, other: Stream) -> None:
        return None


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which stream warmed up and which was recorded, in their order."""
    calls: list[str] = []
    monkeypatch.setattr(Stream, "made", 0)
    default = Stream()

    @contextlib.contextmanager
    def stream(given: Stream) -> Iterator[None]:
        calls.append(f"warm {given.number}")
        yield

    @contextlib.contextmanager
    def graph(
        recorded: object, pool: object = None, stream: Stream | None = None
    ) -> Iterator[None]:
        calls.append(f"record {stream.number if stream else 'torch'}")
        yield

    for name, value in {
        "Stream": Stream,
        "CUDAGraph": object,
        "current_stream": lambda: default,
        "graph": graph,
        "set_device": lambda device: None,
        "stream": stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return calls


def test_all_recordings_are_made_on_one_stream(used: list[str]) -> None:
    """cuBLAS keeps 32 MiB for each stream that it has multiplied on."""
    device, runs = Cuda(), []
    for size in range(3):
        device.capture(lambda size=size: runs.append(size), None)  # type: ignore[misc]
    assert runs == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # twice to warm up
    assert used == ["warm 2", "record 2"] * 3
    assert Stream.made == 2
