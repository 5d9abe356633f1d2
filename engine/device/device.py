"""Where tensors live and how they get there: the host, or one CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

ALIGNMENT = 64  # elements of 4 bytes: parts of one transfer start where kernels like it


class Event(Protocol):
    """A point in the device's work, as `torch.cuda.Event` has it."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Graph(Protocol):
    """Recorded work that reads and writes the same memory each time; `torch.cuda.CUDAGraph`."""

    def replay(self) -> None: ...


class HostCopy:
    """A tensor on its way to the host; asking for its values waits for it."""

    def __init__(self, tensor: torch.Tensor, arrival: Event | None = None) -> None:
        self._tensor = tensor
        self._arrival = arrival

    def tensor(self) -> torch.Tensor:
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None
        return self._tensor

    def tolist(self) -> Any:
        return self.tensor().tolist()


class Device(Protocol):
    """A device, `device` being torch's name for it."""

    device: torch.device

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in host memory that the device reads without the host waiting."""

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; the host does not wait."""

    def download(self, tensor: torch.Tensor) -> HostCopy:
        """Start a copy to the host."""

    def event(self) -> Event:
        """A new event."""

    def lost(self) -> bool:
        """Whether the device has failed for good and this process with it."""


@runtime_checkable
class Recorder(Device, Protocol):
    """A device whose work can be recorded."""

    def graph_pool(self) -> Any:
        """Memory for recordings to share what is only used inside of each."""

    def capture(self, work: Callable[[], None], pool: Any) -> Graph:
        """Record `work`, which leaves its results in memory of its own."""


@runtime_checkable
class Measured(Device, Protocol):
    """A device whose memory can be measured; that of the CPU is planned."""

    def free_bytes(self) -> int:
        """Memory that can still be taken, what the allocator keeps unused included."""

    def total_bytes(self) -> int:
        """Memory of the device."""

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Most memory that `work` takes beyond what was held before."""


class Host:
    """`Device` of the CPU, where nothing is asynchronous and nothing is recorded."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def download(self, tensor: torch.Tensor) -> HostCopy:
        return HostCopy(tensor)

    def event(self) -> Event:
        return _Now()

    def lost(self) -> bool:
        return False


class Cuda:
    """`Recorder` and `Measured`: one CUDA device. All work goes to the current stream."""

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        # torch keeps a workspace of cuBLAS for each stream that ever multiplied, 32 MiB on Hopper:
        # all recordings share one stream, and so what lies in that workspace at each replay
        self._recording = torch.cuda.Stream(self.device)

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        # torch keeps a pinned block from being reused until copies out of it are done
        return tensor.pin_memory()

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def download(self, tensor: torch.Tensor) -> HostCopy:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        arrival = self.event()
        arrival.record()
        return HostCopy(host, arrival)

    def event(self) -> Event:
        return torch.cuda.Event()

    def graph_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], None], pool: Any) -> Graph:
        stream = self._recording
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # kernels are chosen, and some compiled, when they first run
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            work()
        return graph

    def lost(self) -> bool:
        try:
            torch.cuda.synchronize()
        except RuntimeError:  # an error of the context stays with every later call
            return True
        return False

    def free_bytes(self) -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def total_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[1]

    def peak_bytes(self, work: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held


class _Now:
    """The host's `Event`: everything before it is done already."""

    def record(self) -> None:
        return None

    def synchronize(self) -> None:
        return None


def pack(parts: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Integer tensors end to end as one int32 tensor, aligned, and where each begins."""
    starts, size = [], 0
    for part in parts:
        starts.append(size)
        size += -(-part.numel() // ALIGNMENT) * ALIGNMENT
    packed = torch.zeros(size, dtype=torch.int32)
    for start, part in zip(starts, parts, strict=True):
        packed[start : start + part.numel()] = part.flatten()
    return packed, starts


def send(device: Device, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Small integer tensors to the device as int32, in one transfer."""
    packed, starts = pack(parts)
    there = device.upload(packed)
    return [
        there[start : start + part.numel()].view(part.shape)
        for start, part in zip(starts, parts, strict=True)
    ]
