"""Compiling the library: what there is to compile with, and what is said where it cannot be."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config.schema import NATIVE
from engine.native import build
from engine.native.build import SOURCES, VARIANTS, NotBuilt
from engine.native.loading import variants
from tests.engine.native.conftest import emulation

CHECKOUT = Path(__file__).parents[3]


def test_variants_are_those_that_the_library_chooses_from(built: Path) -> None:
    text = (SOURCES / "dispatch.c").read_text()
    lists = re.findall(r"VARIANTS\[\] = \{(.*?)\};", text)
    named = [re.findall(r"VARIANT_OF\((\w+)\)", found) for found in lists]
    assert [set(found) for found in named] == [set(VARIANTS["x86_64"]), set(VARIANTS["aarch64"])]
    assert variants(everywhere=True, file=built) == named[list(VARIANTS).index(platform.machine())]


def test_the_key_names_all_of_them() -> None:
    everywhere = {name for machine in VARIANTS.values() for name in machine}
    assert set(NATIVE) == {"auto", "torch", *everywhere}


def script(folder: Path, *lines: str) -> Path:
    """A compiler that does as it is told here."""
    path = folder / "cc"
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


def test_nothing_is_left_beside_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, folder = tmp_path / "scratch", tmp_path / "new" / "folder"
    scratch.mkdir()
    monkeypatch.setattr(build.tempfile, "tempdir", str(scratch))
    writes = script(tmp_path, 'while [ "$1" != -o ]; do shift; done', 'echo made > "$2"')
    assert build.build(folder, command=[str(writes)]) == folder / "libappliance.so"
    before = (folder / "libappliance.so").open()
    build.build(folder, command=[str(writes)])
    assert [path.name for path in folder.iterdir()] == ["libappliance.so"]
    with before:  # a process that has the old one mapped keeps it
        assert os.fstat(before.fileno()).st_nlink == 0
    assert list(scratch.iterdir()) == []


def command(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine.native.build", str(folder)],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_compiler_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    ran = command(tmp_path / "out", CC="no-such-compiler -O2")
    assert ran.returncode == 1
    assert ran.stderr == "not built: no-such-compiler cannot be run\n"
    assert not (tmp_path / "out").exists()


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    fails = script(tmp_path, "echo there is no room on the moon >&2", "exit 3")
    ran = command(tmp_path / "out", CC=str(fails))
    assert ran.returncode == 1
    assert ran.stderr == f"not built: {fails} failed: there is no room on the moon\n"
    assert not (tmp_path / "out").exists()


def test_without_a_compiler_one_from_the_package_index_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotBuilt, match=r"no C compiler that knows .*: install a newer gcc or"):
        build.compiler()
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: name)
    assert build.compiler()[:4] == [sys.executable, "-m", "ziglang", "cc"]
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(build, "_knows_all", lambda command: command == ["/bin/clang"])
    assert build.compiler() == ["/bin/clang"]
    monkeypatch.setenv("CC", "ccache gcc-12")
    assert build.compiler() == ["ccache", "gcc-12"]


@pytest.mark.parametrize(("machine", "system"), [("riscv64", "linux"), ("x86_64", "darwin")])
def test_machines_without_kernels_are_named(
    machine: str, system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build.sys, "platform", system)
    with pytest.raises(NotBuilt, match=f"no kernels for {machine} on {system}"):
        build.build(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
@pytest.mark.parametrize("machine", VARIANTS)
def test_the_package_compiles_for_every_machine(
    machine: str, tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = platform.machine()
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    code = {"x86_64": 62, "aarch64": 183}[machine]  # e_machine of the ELF header
    found = build.build(tmp_path, emulation() if machine == here else ())
    assert found.read_bytes()[18:20] == code.to_bytes(2, "little")
    if machine == here:  # its runtime knows no processor
        assert variants(file=found) == variants(file=built)
