"""The process of a rank other than 0: it loads its share, then carries out orders."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from engine.device.log_lines import LogStyle
from engine.device.process_setup import keep_memory, set_up
from engine.errors import EngineError
from engine.options import EngineOptions
from engine.process.imports import bring, sparing

if TYPE_CHECKING:
    from engine.parallel.ranks import Ranks
    from engine.running.platform import Platform
    from engine.running.runner import Runner

logger = logging.getLogger(__name__)

# What rank 0 has to come to the same end and to say why: this process then ends with it.
PEER_SECONDS = 3.0


def run_follower(options: EngineOptions, rank: int, link: Connection, style: LogStyle) -> None:
    """Body of the process of `rank`."""
    with sparing():
        set_up(style)
        from engine.parallel.ranks import end_with

        end_with([link])
        with contextlib.suppress(Exception):  # what is wrong with it is told when it is loaded
            bring(options.model_path)
    try:
        follow(options, rank, link)
    except EngineError as error:
        time.sleep(PEER_SECONDS)
        logger.error("rank %d of %d: %s", rank, options.tensor_parallel, error)
        sys.exit(1)
    except Exception:
        time.sleep(PEER_SECONDS)
        logger.exception("rank %d of %d failed", rank, options.tensor_parallel)
        sys.exit(1)


def follow(
    options: EngineOptions, rank: int, link: Connection, platform: Platform | None = None
) -> None:
    """Load the rank's share, then carry out orders until rank 0 is gone.

    `platform` is the configured device's unless it is given.
    """
    import torch

    from engine.parallel.ranks import Ranks
    from engine.parallel.shard import load_share
    from engine.running.exercise import pages_needed
    from engine.running.platform import platform_for
    from engine.running.runner import Runner

    torch.set_num_threads(options.threads)
    link.poll(None)  # rank 0 speaks once it has seen that there is a card for each
    platform = platform_for(options.device, rank) if platform is None else platform
    ranks = Ranks(rank, options.tensor_parallel, [link], platform.device)
    platform.prepare_kernels(options, lambda phase, fraction: None)  # or wait until rank 0 has
    # rank 0 alone has towers: placeholders come as tokens that no rank has
    loaded = load_share(
        options.model_path,
        options.dtype,
        str(platform.device),
        rank=rank,
        ranks=ranks.size,
        quantized=options.quantization is not None,
    )
    # rank 0 may try steps first and then say how many pages there are
    pages = pages_needed(options) if platform.warms_up else options.pages
    runner = Runner(loaded, options, platform, pages, ranks)
    keep_memory()
    with contextlib.suppress(EOFError):
        while True:
            carry_out_next(runner, ranks, options.page_size)


def carry_out_next(runner: Runner, ranks: Ranks, page_size: int) -> None:
    """Wait for one order and carry it out."""
    from engine.parallel import orders

    message = ranks.await_order()
    match orders.kind_of(message):
        case orders.Kind.RUN:
            runner.follow(*orders.run_of(message, page_size))
        case orders.Kind.STORE:
            runner.store(*orders.numbers_of(message))
        case orders.Kind.RECORD:
            (largest,) = orders.numbers_of(message)
            runner.record(largest=bool(largest))
        case orders.Kind.FORGET:
            runner.forget()
