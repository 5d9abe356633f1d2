"""The processes of all ranks but 0, as the process that starts the engine sees them."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from engine.device.log_lines import LogStyle
from engine.device.process_setup import start
from engine.options import EngineOptions
from engine.parallel.exit_codes import PEER_GONE
from engine.process.follower import run_follower

REAP_SECONDS = 0.2  # what a process that has ended may take to be known as such


class Followers:
    """Ranks 1 and up of an engine; `links` are rank 0's ends of the pipes to them."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self.processes: list[BaseProcess] = []
        self.links: list[Connection] = []

    def start(self, style: LogStyle) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self._options.tensor_parallel):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=run_follower,
                args=(self._options, rank, theirs, style),
                name=f"engine rank {rank}",
                daemon=True,
            )
            start(process)
            theirs.close()
            self.processes.append(process)
            self.links.append(ours)

    def close_links(self) -> None:
        """Let go of the pipes here; ranks end when nobody else holds them."""
        for link in self.links:
            link.close()
        self.links = []

    def failure(self, leader: BaseProcess | None) -> str | None:
        """Which rank ended first, rank 0 being `leader`, and how; None if it cannot be known.

        Ranks that only left after another one, or after a step that failed, say so by their exit
        code.
        """
        ended = []
        for rank, process in enumerate([leader, *self.processes]):
            if process is None:
                continue
            process.join(REAP_SECONDS)
            if process.exitcode not in (None, 0, PEER_GONE):
                ended.append((rank, process.exitcode))
        if not ended:
            alone = leader is not None and leader.exitcode == PEER_GONE
            return (
                f"rank 0 of {self._options.tensor_parallel} gave up; the log says why"
                if alone
                else None
            )
        rank, code = min(ended, key=lambda one: (one[1] > 0, one[0] == 0))  # a signal comes first
        how = f"exit code {code}; the log says why" if code > 0 else signal.Signals(-code).name
        return f"rank {rank} of {self._options.tensor_parallel} ended unexpectedly ({how})"

    def kill(self) -> None:
        """End them now."""
        self.close_links()
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(1)
