"""Compiling kernels, all of them together, in processes of their own."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock

from engine.device.host_memory import available_memory
from engine.device.toolchain import lay_out, search_path
from engine.errors import EngineError
from engine.kernels.folder import KernelFolder
from engine.kernels.module import KernelModule
from engine.kernels.versions import Versions, installed

JOB_BYTES = 1_600_000_000  # what nvcc takes for the largest sources
KEPT_LINES = 200
STEP = re.compile(r"\[(\d+)/(\d+)\] ")
LIBRARY = re.compile(r"-o \S*?([^/\s]+)\.so$")
FAULT = re.compile(r"\b(error|fatal|not found|No such file)\b", re.IGNORECASE)

Report = Callable[[int, int, float], None]  # modules that are done, of how many, part of the work
logger = logging.getLogger(__name__)


class CompilingFailed(EngineError):
    """The compiler refuses; its own words are in the log."""

    correctable = True


@dataclass(slots=True, frozen=True)
class Target:
    """Where compiled kernels go, and the architectures they are for."""

    folder: Path
    architectures: tuple[str, ...]

    @property
    def work(self) -> Path:
        """Where an unfinished attempt stays, to be gone on with."""
        return self.folder / ".build"


def compile_modules(
    modules: Sequence[KernelModule], target: Target, threads: int, report: Report
) -> None:
    """Compile what the target's folder has not yet, with as many processes as memory allows.

    Another process that compiles there is waited for, and what it made is not made again. Raises
    CompilingFailed, in one line.
    """
    try:
        target.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompilingFailed(
            f"kernels cannot be compiled into {target.folder} ({error.strerror}): set "
            "kernels.folder to one that can be written to"
        ) from error
    with FileLock(target.folder / ".lock"):
        there = compiled(target)
        missing = [module for module in modules if module.name not in there]
        try:
            if missing:
                _compile(missing, target, jobs(threads), report)
        except OSError as error:
            raise CompilingFailed(
                f"compiled kernels cannot be kept in {target.folder} ({error.strerror})"
            ) from error
        shutil.rmtree(target.work, ignore_errors=True)


def jobs(threads: int) -> int:
    """How many compilers run at once."""
    return max(1, min(threads, available_memory() // JOB_BYTES))


def compiled(target: Target) -> frozenset[str]:
    """What the target's folder has already, unless it is of another kind."""
    folder = KernelFolder(target.folder)
    manifest = folder.manifest()
    if manifest is None or not manifest.runs(target.architectures, installed()):
        return frozenset()
    return folder.intact()


def _compile(
    modules: Sequence[KernelModule], target: Target, processes: int, report: Report
) -> None:
    report(0, len(modules), 0.0)
    asked = {
        "modules": [module.as_json() for module in modules],
        "jobs": processes,
        "parent": os.getpid(),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "engine.kernels.build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(target),
        cwd=Path(__file__).resolve().parents[2],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _ask(process.stdin, json.dumps(asked))
            output = Output(len(modules), report)
            output.read(process.stdout)
        except BaseException:
            process.terminate()  # by then it is ninja, which ends its compilers
            raise
    if process.returncode or not output.libraries:
        logger.error("compiling kernels failed:\n%s", "\n".join(output.tail))
        raise CompilingFailed(
            f"kernels do not compile ({output.fault()}); the log has the compiler's words"
        )
    versions = installed()
    made = Versions(versions.flashinfer, versions.torch, output.cuda)
    KernelFolder(target.folder).keep(output.libraries, made, target.architectures)


def _ask(stream: IO[str], text: str) -> None:
    try:
        with stream:
            stream.write(text)
    except BrokenPipeError:
        pass  # it has ended, and its output says why


def environment(target: Target) -> dict[str, str]:
    """What FlashInfer reads when it is imported: its folders, its toolkit, the architectures."""
    without = ("FLASHINFER_DISABLE_JIT", "NINJA_STATUS")
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return kept | {
        "CUDA_HOME": str(lay_out(target.work / "toolkit")),
        "FLASHINFER_CUDA_ARCH_LIST": " ".join(target.architectures),
        "FLASHINFER_WORKSPACE_BASE": str(target.work.resolve()),
        "PATH": search_path(),
        "PYTHONUNBUFFERED": "1",
    }


class Output:
    """What the compiling process writes, as it comes."""

    def __init__(self, total: int, report: Report) -> None:
        self.libraries: dict[str, Path] = {}
        self.cuda = ""
        self.tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._total = total
        self._report = report
        self._linked: set[str] = set()

    def read(self, lines: Iterable[str]) -> None:
        for line in lines:
            line = line.rstrip()
            if not self.libraries and line.startswith('{"libraries"'):
                told = json.loads(line)
                self.cuda = told["cuda"]
                self.libraries = {name: Path(path) for name, path in told["libraries"].items()}
            elif step := STEP.match(line):
                self._step(int(step[1]), int(step[2]), line)
            elif line:
                self.tail.append(line)

    def fault(self) -> str:
        """The line that says most of why it failed."""
        lines = list(self.tail) or ["no message"]
        if any(line.startswith("Traceback ") for line in lines):  # of Python, before ninja
            return lines[-1][:200]
        return next((line for line in lines if FAULT.search(line)), lines[0])[:200]

    def _step(self, done: int, steps: int, line: str) -> None:
        linked = LIBRARY.search(line)
        if linked:
            self._linked.add(linked[1])
        self._report(len(self._linked), self._total, done / max(steps, 1))
