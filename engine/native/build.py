"""Compiles the library for this kind of processor: `python -m engine.native.build [FOLDER]`.

One library has every variant of the kernels; which of them runs is decided where it is loaded. The
compiler is $CC, the system's, or that of the package ziglang. Only the standard library is
imported: setup.py runs this file before anything is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "cpu"
LIBRARY = "libappliance.so"
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)
WARNINGS = ("-Wall", "-Wextra", "-Werror")  # of tests: an installation meets newer compilers
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
AVX512_BF16 = (*AVX512, "-mavx512bf16", "-mprefer-vector-width=512")
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx2": AVX2,
        "avx512": (*AVX512, "-mprefer-vector-width=512"),
        "avx512_bf16": AVX512_BF16,
        "amx": (*AVX512_BF16, "-mamx-tile", "-mamx-bf16"),
    },
    "aarch64": {"neon": ()},
}
KINDS = ("BFLOAT16", "FLOAT32")
ALONE = ("pool.c", "dispatch.c", "stack.c", "quantize.c", "blocks.c", "resize.c")


class NotBuilt(Exception):
    """The library cannot be compiled here; the message says why in one line."""


def compilers() -> list[list[str]]:
    """Commands that may compile C, the first choice first."""
    found = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else []
    found += [[path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    return found[:1] if os.environ.get("CC") else [one for one in found if _knows_all(one)]


def _knows_all(command: Sequence[str]) -> bool:
    """Whether a compiler is new enough to know the instructions of every variant."""
    flags = {flag for options in VARIANTS.get(platform.machine(), {}).values() for flag in options}
    try:
        _run([*command, *sorted(flags), "-E", "-x", "c", os.devnull])
    except NotBuilt:
        return False
    return True


def compiler() -> list[str]:
    """The command that compiles C. Raises NotBuilt."""
    found = compilers()
    if found:
        return found[0]
    if importlib.util.find_spec("ziglang") is None:
        raise NotBuilt(
            "no C compiler that knows the instructions of today's processors: install a newer gcc "
            "or clang, or the package ziglang"
        )
    # for a C library as old as the oldest system that torch runs on
    return [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        f"{platform.machine()}-linux-gnu.2.28",
    ]


def build(
    folder: Path, flags: Sequence[str] = (), command: Sequence[str] = (), machine: str = ""
) -> Path:
    """Compile into `folder`, with more `flags`; by a `command` for another machine, if it is named.

    Raises NotBuilt.
    """
    machine = machine or platform.machine()
    variants = VARIANTS.get(machine)
    if variants is None or not sys.platform.startswith("linux"):
        raise NotBuilt(f"there are no kernels for {machine} on {sys.platform}")
    run = [*(command or compiler()), *FLAGS, *flags]
    with tempfile.TemporaryDirectory() as scratch:
        objects = {
            Path(scratch, f"{name}_{kind}.o"): [
                *options,
                f"-DVARIANT={name}",
                f"-DELEMENT_{kind}",
                str(SOURCES / "kernels.c"),
            ]
            for name, options in variants.items()
            for kind in KINDS
        }
        objects |= {Path(scratch, f"{name}.o"): [str(SOURCES / name)] for name in ALONE}
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            jobs = [
                pool.submit(_run, [*run, "-c", *what, "-o", str(path)])
                for path, what in objects.items()
            ]
        for job in jobs:
            job.result()
        linked = Path(scratch, LIBRARY)
        _run([*run, "-shared", "-s", *map(str, objects), "-o", str(linked), "-pthread", "-lm"])
        folder.mkdir(parents=True, exist_ok=True)
        # in place of the old one at once: a process may have that mapped
        target = folder / LIBRARY
        fresh = target.with_suffix(f".{os.getpid()}")
        shutil.copyfile(linked, fresh)
        os.replace(fresh, target)
    return target


def _run(command: Sequence[str]) -> None:
    try:
        ran = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - a compiler
    except OSError as error:
        raise NotBuilt(f"{command[0]} cannot be run") from error
    if ran.returncode:
        raise NotBuilt(f"{command[0]} failed: {(ran.stderr or ran.stdout).strip()[-2000:]}")


def main() -> int:
    """Build, and say where the library is or why there is none."""
    parser = argparse.ArgumentParser(description="compile the kernels for the CPU")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    try:
        print(build(parser.parse_args().folder))
    except NotBuilt as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
