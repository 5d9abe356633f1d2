"""How far loading is: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TextIO

from appliance.lifecycle import Lifecycle
from appliance.log_lines import logs_json

logger = logging.getLogger("appliance.serve")

WIDTH = 30
PHASE = len("compiling kernels 26 of 26")  # the longest there is
REDRAW_SECONDS = 0.1
LOG_SECONDS = 10.0


def bar(lifecycle: Lifecycle) -> str:
    """One line of fixed shape."""
    done = round(WIDTH * lifecycle.fraction)
    blocks = "█" * done + "░" * (WIDTH - done)
    detail = f"  {lifecycle.detail}" if lifecycle.detail else ""
    shown = f"{lifecycle.fraction:4.0%} {lifecycle.elapsed:6.1f}s{detail}"
    return f"{lifecycle.phase:<{PHASE}} {blocks} {shown}"


async def show(lifecycle: Lifecycle, stream: TextIO = sys.stderr) -> None:
    """Tell of phases and fractions until the model is loaded; run it as a task and cancel it."""
    if stream.isatty() and not logs_json():
        await _draw(lifecycle, stream)
    else:
        await _log(lifecycle)


async def _draw(lifecycle: Lifecycle, stream: TextIO) -> None:
    try:
        while not lifecycle.loaded:
            stream.write(f"\r{bar(lifecycle)}\033[K")
            stream.flush()
            await asyncio.sleep(REDRAW_SECONDS)
    finally:
        stream.write("\r\033[K")
        stream.flush()


async def _log(lifecycle: Lifecycle) -> None:
    phase, logged = "", 0.0
    while not lifecycle.loaded:
        if lifecycle.phase != phase or time.monotonic() - logged > LOG_SECONDS:
            phase, logged = lifecycle.phase, time.monotonic()
            fields: dict[str, float | str] = {
                "fraction": round(lifecycle.fraction, 2),
                "elapsed": round(lifecycle.elapsed, 1),
            }
            if lifecycle.detail:
                fields["done"] = lifecycle.detail
            logger.info(phase, extra={"fields": fields})
        await asyncio.sleep(REDRAW_SECONDS)
