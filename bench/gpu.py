"""Is the CUDA path right and fast on this card? Prints a table and keeps it in bench/results.

    python -m bench.gpu                 all of it, within ten minutes
    python -m bench.gpu --dry-run       the same on a CPU with tiny shapes: only tries the script

Needs torch with CUDA, transformers, FlashInfer and nvcc, and nothing from a network: weights are
random. Parts that no longer fit into the time are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import math
import platform as machine
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from bench.gpu_checks import kernel_checks, model_checks
from bench.gpu_models import QWEN2_VL_2B, QWEN2_VL_7B, TINY, Shape
from bench.gpu_speed import TINY_SIZES, Limits, ShapeBench, Sizes, measure_limits, pays_from
from bench.gpu_tiny import FAMILIES
from bench.stand_in import torch_flashinfer
from bench.stand_in.platforms import Recording
from engine.running.platform import CudaPlatform, Platform

RESULTS = Path(__file__).parent / "results"


@dataclass(slots=True)
class Report:
    """Rows of the table, in order, and whether all that was aimed at was met."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    failed: bool = False

    def add(self, what: str, found: str, aim: str = "", passed: bool | None = None) -> None:
        verdict = "" if passed is None else "yes" if passed else "NO"
        self.failed = self.failed or passed is False
        self.rows.append((what, found, aim, verdict))
        print(f"{what}: {found} {f'(aim {aim}: {verdict})' if aim else ''}", flush=True)

    def markdown(self) -> str:
        lines = ["| what | found | aim | met |", "| --- | ---: | ---: | --- |"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])


class Run:
    """All parts, each as long as there is time for it."""

    def __init__(self, platform: Platform, exact: Platform, *, tiny: bool, minutes: float) -> None:
        self.platform = platform
        self.exact = exact  # the same device with the torch implementation, for float32
        self.tiny = tiny
        self.sizes = TINY_SIZES if tiny else Sizes()
        self.report = Report()
        self._end = time.monotonic() + 60 * minutes
        self._folder = Path(tempfile.mkdtemp(prefix="bench-gpu-"))

    def all(self) -> None:
        self.part("kernels", 0, self.kernels)
        for family in FAMILIES:
            self.part(f"logits of {family}", 20, lambda family=family: self.logits(family))
        limits = Limits(math.nan, math.nan)

        def measure() -> None:
            nonlocal limits
            limits = measure_limits(self.platform, self.sizes)
            self.report.add("copy bandwidth", f"{limits.bandwidth / 1e9:,.0f} GB/s")
            self.report.add("matmul rate, bfloat16", f"{limits.matmul_rate / 1e12:,.1f} TFLOP/s")

        self.part("limits", 0, measure)
        for shape in (TINY,) if self.tiny else (QWEN2_VL_7B, QWEN2_VL_2B):
            self.part(shape.name, 60, lambda shape=shape: self.speed(shape, limits))
        last = TINY if self.tiny else QWEN2_VL_7B
        self.part(f"{last.name} otherwise", 60, lambda: self.ablations(last))
        self.part(f"{last.name} by transformers", 90, lambda: self.peers(last))
        self.part(f"{last.name} towers", 30, lambda: self.towers(last))

    def part(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        """Run one part if there is time for it; a fault in it does not end the others."""
        if time.monotonic() + seconds > self._end:
            self.report.add(name, "left out: no time")
            return
        start = time.monotonic()
        try:
            work()
        except Exception as error:
            logging.getLogger(__name__).exception("%s failed", name)
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:100].replace("|", "/")
            self.report.add(name, f"failed: {reason}", "to run", False)
            if self.platform.lost():
                raise SystemExit("the device is lost; nothing more can be measured") from error
        print(f"  [{name}: {time.monotonic() - start:.0f} s]", flush=True)

    def kernels(self) -> None:
        start = time.monotonic()
        dtype = torch.float32 if self.tiny else torch.bfloat16
        checks = list(kernel_checks(self.platform, self.exact, dtype))
        wrong = [check for check in checks if not check.passed]
        seconds = time.monotonic() - start
        self.report.add("kernels compiled and compared", f"{seconds:.0f} s")
        found = f"{len(checks) - len(wrong)} of {len(checks)}"
        self.report.add("kernels equal to torch", found, "all", not wrong)
        for check in wrong:
            self.report.add(check.name, f"{check.found:.2e}", f"{check.allowed:.2e}", False)

    def logits(self, family: str) -> None:
        folder = self._folder / family
        pairs = [(self.exact, ("float32",), False)]
        if not self.tiny:
            pairs.append((self.platform, ("bfloat16",), True))
        else:
            pairs[0] = (self.exact, ("float32",), True)
        for platform, dtypes, graphs in pairs:
            for check in model_checks(family, folder, platform, dtypes, graphs=graphs):
                aim = f"{'>' if check.control else '<'} {check.allowed:.1e}"
                self.report.add(check.name, f"{check.found:.1e}", aim, check.passed)

    def speed(self, shape: Shape, limits: Limits) -> None:
        bench = ShapeBench(shape, self._folder / shape.name, self.platform, self.sizes)
        bench.collect()
        engine = bench.engine()
        for batch in self.sizes.batches:
            seconds = bench.decode_seconds(engine, batch)
            share = bench.decode_floor(batch, limits) / seconds
            aimed = shape is QWEN2_VL_7B and batch <= 32
            self.report.add(
                f"{shape.name} decode, batch {batch}",
                f"{batch / seconds:,.0f} tok/s, {1e3 * seconds:.2f} ms, {share:.0%} of the floor",
                "80%" if aimed else "",
                share >= 0.8 if aimed else None,
            )
        tokens, operations = bench.prefill_rate(engine)
        share = operations / limits.matmul_rate
        aimed = shape is not TINY
        self.report.add(
            f"{shape.name} prefill, {self.sizes.prefill} tokens",
            f"{tokens:,.0f} tok/s, {share:.0%} of the matmul rate",
            "60%" if aimed else "",
            share >= 0.6 if aimed else None,
        )
        if self.platform.device.type == "cuda":
            part = bench.idle_share(engine, 32)
            aim = ("5%", part <= 0.05) if shape is QWEN2_VL_7B else ("", None)
            self.report.add(f"{shape.name} card idle, batch 32", f"{part:.1%}", *aim)

    def ablations(self, shape: Shape) -> None:
        """The same decoding without graphs, and without fused layers."""
        bench = ShapeBench(shape, self._folder / shape.name, self.platform, self.sizes)
        for name, changes in (
            ("kernel by kernel", {"graphs": False}),
            ("unfused, graphs", {"fuse": False}),
        ):
            engine = bench.engine(**changes)
            for batch in (self.sizes.batches[0], self.sizes.batches[len(self.sizes.batches) // 2]):
                seconds = bench.decode_seconds(engine, batch)
                self.report.add(
                    f"{shape.name} decode {name}, batch {batch}",
                    f"{batch / seconds:,.0f} tok/s, {1e3 * seconds:.2f} ms",
                )
            del engine
            bench.collect()

    def peers(self, shape: Shape) -> None:
        bench = ShapeBench(shape, self._folder / shape.name, self.platform, self.sizes)
        bench.collect()
        batch = 2 if self.tiny else 32
        ours = bench.serving_rate(bench.engine(), batch)
        bench.collect()
        self.report.add(f"{shape.name} prompts and answers, batch {batch}", f"{ours:,.0f} tok/s")
        rate = bench.transformers_generate(batch)
        self.report.add(f"{shape.name} transformers' generate, batch {batch}", f"{rate:,.0f} tok/s")
        if self.platform.device.type != "cuda":
            return  # its continuous batching wants a card
        bench.collect()
        rate = bench.transformers_batching(batch)
        self.report.add(
            f"{shape.name} transformers' continuous batching, batch {batch}",
            f"{rate:,.0f} tok/s, ours is {ours / rate:.1f} times that",
            "5 times",
            ours >= 5 * rate,
        )

    def towers(self, shape: Shape) -> None:
        bench = ShapeBench(shape, self._folder / shape.name, self.platform, self.sizes)
        seconds = {}
        for attention in ("sdpa", "flashinfer"):
            bench.collect()
            seconds[attention] = bench.tower_seconds(attention)
            for patches, each in seconds[attention].items():
                name = f"{shape.name} tower, {attention}, {patches} patches"
                self.report.add(name, f"{1 / each:,.1f} images/s")
        least = pays_from(seconds["flashinfer"], seconds["sdpa"])
        found = "never" if least is None else f"engine.vision_attention_from={least}"
        self.report.add(f"{shape.name} tower, flashinfer is faster from", found)


def heading(platform: Platform) -> str:
    """The machine and the versions, as one line of the result."""
    versions = []
    for package in ("torch", "transformers", "flashinfer-python"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    return f"{card_name(platform)}, Python {machine.python_version()}, {', '.join(versions)}"


def card_name(platform: Platform) -> str:
    if platform.device.type != "cuda":
        return "CPU"
    return torch.cuda.get_device_name(platform.device)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--minutes", type=float, default=10.0, help="leave out what takes longer")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args(argv)
    platform: Platform
    if options.dry_run:
        platform = exact = Recording()
    else:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        platform, exact = CudaPlatform(), CudaPlatform(library=torch_flashinfer)
    title = heading(platform)
    print(title, flush=True)
    run = Run(platform, exact, tiny=options.dry_run, minutes=options.minutes)
    try:
        run.all()
    finally:
        today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        card = re.sub(r"[^a-z0-9]+", "-", card_name(platform).lower()).strip("-")
        options.output.mkdir(parents=True, exist_ok=True)
        path = options.output / f"{today}-{card}.md"
        path.write_text(f"# bench.gpu, {today}\n\n{title}\n\n{run.report.markdown()}\n")
        print(f"\n{run.report.markdown()}\n\nwritten to {path}")
    return 1 if run.report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
