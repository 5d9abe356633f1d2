"""Is the CUDA path right and fast on this card? Tells most first and keeps every row at once.

    python -m bench.gpu                      all of it, within ten minutes
    python -m bench.gpu --minutes 3          what matters most
    python -m bench.gpu --resume             go on where a run of today stopped
    python -m bench.gpu --only kernels demo  these parts
    python -m bench.gpu --dry-run            the same on a CPU with tiny shapes: tries the script

Needs torch with CUDA, transformers, FlashInfer and its kernels or nvcc, and nothing from a
network: weights are random or the demo's. The parts run in a process beside this one, which is
ended and begun anew when a part takes longer than it may. Parts that no longer fit into the time
are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.gpu_rows import Report, Row

if TYPE_CHECKING:
    from bench.gpu_parts import Part

RESULTS = Path(__file__).parent / "results"
START_SECONDS = 120.0  # until torch is imported and the card answers


@dataclass(slots=True, frozen=True)
class Ended:
    """The last message about a part; `lost`: the device has failed, and this process with it."""

    lost: bool = False


@dataclass(slots=True, frozen=True)
class Began:
    """The first message of a process: the machine, and the parts with seconds and limits."""

    card: str
    title: str
    parts: dict[str, tuple[float, float]]


def work(
    pipe: Connection, folder: Path, tiny: bool, parts: Callable[..., list[Part]] | None = None
) -> None:
    """Run the parts whose names come, and send their rows; ends when the pipe does.

    What they write is left in `folder`. `parts` are those of `bench.gpu_parts` unless given.
    """
    from bench import gpu_parts

    parts = parts or gpu_parts.parts
    run = gpu_parts.Run(folder, tiny=tiny)
    known = {part.name: part for part in parts(tiny=tiny)}
    pipe.send(Began(run.card, run.title, {p.name: (p.seconds, p.limit) for p in known.values()}))
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        lost = False
        try:
            for row in known[name].run(run):
                pipe.send(row)
        except Exception as error:
            traceback.print_exc()
            pipe.send(Row(name, f"failed: {gpu_parts.said(error)}", "to run", False))
            lost = run.platform.lost()
        pipe.send(Ended(lost))
        if lost:
            return


class Worker:
    """A process that runs parts. Each has its own limit; a process that is over one is killed."""

    def __init__(self, folder: Path, tiny: bool) -> None:
        # a fork of this process would share the card's context; one that only imported does not
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["bench.gpu_parts"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, folder, tiny), daemon=True)
        self._process.start()
        theirs.close()
        self.began: Began = self._next(time.monotonic() + START_SECONDS)

    def run(self, part: str, limit: float, report: Report) -> bool:
        """Report the rows of a part; False if this process can run no more."""
        end = time.monotonic() + limit
        try:
            self._pipe.send(part)
            while not isinstance(message := self._next(end), Ended):
                report.add(message)
        except TimeoutError:
            report.add(Row(part, f"ended after {limit:.0f} s", "to end", False))
            return False
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            report.add(Row(part, f"its process ended with {code}", "to run", False))
            return False
        return not message.lost

    def stop(self) -> None:
        """Let it end by itself; one that does not is killed."""
        self._pipe.close()
        self._process.join(3)
        self._process.kill()
        self._process.join()

    def _next(self, end: float) -> Any:
        if not self._pipe.poll(max(0.0, end - time.monotonic())):
            raise TimeoutError
        return self._pipe.recv()


def run_parts(options: argparse.Namespace, report: Report, folder: Path) -> None:
    """Run what was asked for, as long as there is time."""
    end = time.monotonic() + 60 * options.minutes
    worker = Worker(folder, options.dry_run)
    try:
        began = worker.began
        print(began.title, flush=True)
        if unknown := set(options.only or []) - set(began.parts):
            known = ", ".join(began.parts)
            raise SystemExit(f"no part is called {', '.join(sorted(unknown))}: {known}")
        report.begin(began.card, began.title, resume=options.resume)
        sound = True
        for name, (seconds, limit) in began.parts.items():
            if name in report.done or (options.only and name not in options.only):
                continue
            if end - time.monotonic() < seconds:
                report.leave_out(name)
                continue
            if not sound:
                worker.stop()
                worker = Worker(folder, options.dry_run)
            start = time.monotonic()
            sound = worker.run(name, min(limit, end - start), report)
            report.end(name)
            print(f"  [{name}: {time.monotonic() - start:.0f} s]", flush=True)
    finally:
        worker.stop()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--minutes", type=float, default=10.0, help="leave out what takes longer")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--resume", action="store_true", help="skip what today's file has")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    options = parser.parse_args(argv)
    report = Report(options.output)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        run_parts(options, report, Path(folder))
    print(f"\n{report.markdown()}\n\nwritten to {report.path}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
