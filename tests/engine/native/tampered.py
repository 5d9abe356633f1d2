"""Copies of the library's sources with something changed, and what is compiled of them."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.native import build

LIBRARY = "LIBRARY_UNDER_TEST"  # variable of the environment: which library the tests load
QUICK = ("-O0",)  # where it is not about speed


def copied(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """The sources with changes of (file, before, after), each of which must apply just once."""
    sources = Path(shutil.copytree(build.SOURCES, folder / "cpu"))
    for name, before, after in changes:
        text = (sources / name).read_text()
        assert text.count(before) == 1, f"{name} has no such line: {before}"
        (sources / name).write_text(text.replace(before, after))
    return sources


def with_one_variant(
    monkeypatch: pytest.MonkeyPatch, sources: Path, options: Sequence[str] | None = None
) -> str:
    """Leave but the plainest variant: compiling all of them takes its time. Returns its name."""
    machine = platform.machine()
    name, own = next(iter(build.VARIANTS.get(machine, {"none": ()}).items()))
    kept = {name: own if options is None else tuple(options)}
    monkeypatch.setattr(build, "VARIANTS", {machine: kept})
    text = (sources / "dispatch.c").read_text()
    changed = re.sub(r"VARIANTS\[\] = \{.*?\};", f"VARIANTS[] = {{VARIANT_OF({name})}};", text)
    (sources / "dispatch.c").write_text(changed)
    return name


def library_of(
    monkeypatch: pytest.MonkeyPatch, sources: Path, folder: Path, flags: Sequence[str] = QUICK
) -> Path:
    """The library compiled of other sources; skips where nothing can be compiled."""
    monkeypatch.setattr(build, "SOURCES", sources)
    try:
        return build.build(folder, flags)
    except build.NotBuilt as error:
        pytest.skip(str(error))


def program(
    folder: Path, files: Sequence[Path], flags: Sequence[str], sources: Path = build.SOURCES
) -> Path:
    """A program of C files that sees the library's sources; skips where it cannot be compiled."""
    try:
        command = build.compiler()
    except build.NotBuilt as error:
        pytest.skip(str(error))
    target = folder / files[0].stem
    ran = subprocess.run(
        [
            *command,
            *("-std=gnu11", "-g", *build.WARNINGS, *flags, f"-I{sources}"),
            *map(str, files),
            *("-o", str(target), "-pthread", "-lm"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return target
