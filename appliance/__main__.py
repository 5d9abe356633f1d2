"""`python -m appliance`, and the console script `appliance`."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> int:
    """Run the launcher; until it serves, a signal ends the process at once and without a word."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as for `nohup` and `&`
            signal.signal(number, _end)
    from appliance.launcher import main as launch  # takes longer than a hand at a keyboard

    return launch()


def _end(number: int, _: FrameType | None) -> None:
    """A handler, since the first process of a container knows no default action."""
    os._exit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
