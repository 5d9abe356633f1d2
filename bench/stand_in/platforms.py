"""Platforms to check with: the CPU in a card's place, with its graphs or without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bench.reference import engine_options
from bench.stand_in import torch_flashinfer
from bench.stand_in.torch_products import TorchProducts
from engine.attention.backend import AttentionShape
from engine.core import Engine
from engine.device.device import Event, Graph, Host
from engine.layers.decode_products import DecodeProducts
from engine.running.platform import FlashInferOffers, Platform


class Replay:
    """A graph that computes anew, from the memory that was recorded."""

    def __init__(self, work: Callable[[], None], log: list[str], name: str) -> None:
        self._work = work
        self._log = log
        self._name = name
        work()

    @torch.inference_mode()
    def replay(self) -> None:
        self._log.append(f"replay {self._name}")
        self._work()


class LoggedEvent:
    def __init__(self, log: list[str], number: int) -> None:
        self._log = log
        self._number = number

    def record(self) -> None:
        self._log.append(f"record {self._number}")

    def synchronize(self) -> None:
        self._log.append(f"wait {self._number}")


class StandIn(FlashInferOffers, Host):
    """The CPU with FlashInfer's interface, by the torch implementation unless told otherwise."""

    def __init__(self, library: object = torch_flashinfer) -> None:
        super().__init__()
        self.library = library
        self.own = TorchProducts()

    def products(
        self, shape: AttentionShape, dtype: torch.dtype, depths: tuple[int, ...], wanted: str
    ) -> DecodeProducts | None:
        return None if wanted == "library" else self.own


class Recording(StandIn):
    """The CPU with the torch implementation, "recording" graphs and logging what happens."""

    def __init__(self, library: object = torch_flashinfer) -> None:
        super().__init__(library)
        self.log: list[str] = []
        self._events = self._graphs = 0

    def event(self) -> Event:
        self._events += 1
        return LoggedEvent(self.log, self._events)

    def graph_pool(self) -> None:
        return None

    def capture(self, work: Callable[[], None], pool: Any) -> Graph:
        self._graphs += 1
        return Replay(work, self.log, str(self._graphs))


def standing_in(**replaced: object) -> SimpleNamespace:
    """The torch implementation with some of its members replaced."""
    members = {name: getattr(torch_flashinfer, name) for name in torch_flashinfer.__all__}
    return SimpleNamespace(**(members | replaced))


def cuda_path(folder: Path, platform: Platform | None = None, **changes: object) -> Engine:
    """An engine that takes the path of a CUDA device, on the CPU."""
    return Engine(engine_options(folder, **changes), platform=platform or StandIn())


# the paths through the engine, and what each needs of its options
PATHS: dict[str, dict[str, object]] = {
    "cpu": {},
    "cpu by torch": {"native": "torch"},
    "cpu unfused": {"fuse": False},
    "cuda": {},
    "cuda unfused": {"fuse": False},
    "cuda graphs": {"graphs": True},
    "cuda prefill graphs": {"graphs": True, "prefill_graphs": 512},
    "cuda own products": {"graphs": True, "decode_products": "auto"},
}


def engine_on(path: str, folder: Path, **changes: object) -> Engine:
    """An engine that takes one of the paths."""
    options = PATHS[path] | changes
    if path.startswith("cuda"):
        return cuda_path(folder, Recording(), **options)
    return Engine(engine_options(folder, **options))


def replayed(engine: Engine) -> bool:
    """Whether anything was computed by a recording."""
    return any("replay" in line for line in getattr(engine._platform, "log", []))
