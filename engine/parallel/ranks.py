"""The ranks of one engine: what they compute together, and the pipes that orders go through."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from engine.device.environment import variables
from engine.errors import DeviceMissing, EngineError
from engine.parallel.exit_codes import PEER_GONE

LOOPBACK = "127.0.0.1"
# Ranks that die are noticed by their processes' end; this is for a fabric that hangs.
TIMEOUT = timedelta(minutes=10)


class Ranks:
    """One of `size` processes that each hold a share of a model. All call the same in turn."""

    def __init__(
        self, rank: int, size: int, links: Sequence[Connection], device: torch.device
    ) -> None:
        """`links`: rank 0's pipes to all others, or the other's one to rank 0. Waits for all."""
        self.rank = rank
        self.size = size
        self._links = list(links)
        if dist.is_initialized():
            raise EngineError("another engine of several ranks runs in this process")
        if device.type == "cuda" and torch.cuda.device_count() < size:
            raise DeviceMissing(
                f"parallelism.tensor={size} takes as many cards, and this machine shows "
                f"{torch.cuda.device_count()}"
            )
        with variables({"GLOO_SOCKET_IFNAME": "lo"}):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=self._listen() if rank == 0 else self._connect(),
                rank=rank,
                world_size=size,
                timeout=TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )

    def order(self, message: bytes) -> None:
        """Send an order to the others (on rank 0). Raises OSError when one is gone."""
        for link in self._links:
            link.send_bytes(message)

    def await_order(self) -> bytes:
        """The next order of rank 0. Raises EOFError when it is gone."""
        return self._links[0].recv_bytes()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in the place of the argument."""
        dist.all_reduce(tensor)
        return tensor

    def share(self, tensor: torch.Tensor) -> None:
        """Overwrite the tensor by rank 0's."""
        dist.broadcast(tensor, 0)

    def gather(self, columns: torch.Tensor) -> torch.Tensor:
        """All ranks' `[rows, columns]` side by side on rank 0; others get theirs back."""
        if self.rank > 0:
            dist.gather(columns, None, 0)
            return columns
        parts = columns.new_empty(self.size, *columns.shape)
        dist.gather(columns, list(parts), 0)
        return parts.transpose(0, 1).reshape(len(columns), -1)

    def leave(self) -> None:
        """Forget the others."""
        dist.destroy_process_group()

    def _listen(self) -> Store:
        listener = socket.create_server((LOOPBACK, 0))
        port = listener.getsockname()[1]
        store = TCPStore(
            LOOPBACK,
            port,
            self.size,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        self.order(str(port).encode())
        return store

    def _connect(self) -> Store:
        return TCPStore(LOOPBACK, int(self.await_order()), self.size, is_master=False)


def end_with(links: Sequence[Connection]) -> None:
    """End this process as soon as one of these pipes has lost its other end.

    A collective operation on a card waits forever for a rank that is gone.
    """
    poll = select.poll()
    for link in links:
        poll.register(link.fileno(), 0)  # nothing but a hang-up

    def watch() -> None:
        poll.poll()
        os._exit(PEER_GONE)

    threading.Thread(target=watch, name="peers", daemon=True).start()
