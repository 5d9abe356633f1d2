"""How far loading is, in a bar and in the log."""

from __future__ import annotations

import asyncio
import logging

import pytest

from appliance.lifecycle import Lifecycle
from appliance.progress import bar, show
from engine.device.log_lines import fields_of


class Notes:
    """A stream that is no terminal."""

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("fraction", "detail", "shown"),
    [
        (0.0, "", "  0% "),
        (0.25, "1.10 GiB of 4.40 GiB", " 25% "),
        (1.0, "4.40 GiB of 4.40 GiB", "100% "),
    ],
)
def test_the_bar_has_bytes_where_there_are_some(fraction: float, detail: str, shown: str) -> None:
    line = bar(Lifecycle(phase="fetching weights", fraction=fraction, detail=detail))
    assert shown in line
    assert line.endswith(detail or "s")
    assert line.count("█") == round(30 * fraction)


def test_the_bar_stays_in_its_place_while_kernels_are_compiled() -> None:
    places = {
        bar(Lifecycle(phase=phase)).index("░")
        for phase in ("starting", "compiling kernels 9 of 26", "compiling kernels 26 of 26")
    }
    assert len(places) == 1


async def told(lifecycle: Lifecycle) -> None:
    task = asyncio.create_task(show(lifecycle, Notes()))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    task.cancel()


@pytest.mark.parametrize("detail", ["", "1.00 MiB of 2.00 MiB"])
def test_so_has_the_log(caplog: pytest.LogCaptureFixture, detail: str) -> None:
    with caplog.at_level(logging.INFO, "appliance.serve"):
        asyncio.run(told(Lifecycle(phase="fetching weights", fraction=0.5, detail=detail)))
    [record] = caplog.records
    assert record.getMessage() == "fetching weights"
    assert fields_of(record).get("done", "") == detail
    assert fields_of(record)["fraction"] == 0.5
