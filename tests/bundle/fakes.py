"""Tiny wheels, kernels and machines."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.kernels.folder import KernelFolder
from engine.kernels.versions import Versions
from tools.bundle.wheel import write_wheel

VERSIONS = Versions("0.7.2.post1", "2.11.0", "13.0")
ARGUMENTS = "import sys, flashinfer; print('bench', flashinfer.__file__, *sys.argv[1:])\n"


def write_fake_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes] | None = None,
    requires: Sequence[str] = (),
    python: str = ">=3.8",
) -> Path:
    """A wheel that pip installs; by default of one empty module."""
    package = name.replace("-", "_")
    info = f"{package}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Python: {python}", *(f"Requires-Dist: {one}" for one in requires)]
    contents = {
        **(files if files is not None else {f"{package}/__init__.py": b""}),
        f"{info}/METADATA": "\n".join([*lines, "", "A text.\n"]).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{package}-{version}-py3-none-any.whl"
    write_wheel(target, iter(contents.items()), f"{info}/RECORD")
    return target


def library(runtime: str = "13", machine: int = 62, more: bytes = b"") -> bytes:
    """As much of a shared library as is looked at."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little")
    linked = f"libcudart.so.{runtime}\0".encode()
    return head + machine.to_bytes(2, "little") + bytes(44) + linked + more


def write_kernels(
    folder: Path,
    libraries: Mapping[str, bytes] | None = None,
    versions: Versions = VERSIONS,
    architectures: tuple[str, ...] = ("9.0a",),
) -> Path:
    """A folder of compiled kernels, by default two small ones."""
    made = folder.with_name(f"{folder.name}-made")
    made.mkdir(parents=True)
    contents = libraries or {name: library(more=name.encode()) for name in ("norm", "page")}
    for name, content in contents.items():
        (made / name).write_bytes(content)
    KernelFolder(folder).keep({name: made / name for name in contents}, versions, architectures)
    return folder


def noise(size: int) -> bytes:
    """Bytes that no compression makes fewer."""
    return random.Random(size).randbytes(size)


def write_torch(site: Path, version: str = "2.11.0+cu130", cuda: str = "13.0") -> Path:
    """As much of an installed torch as is looked at; one that cannot be imported."""
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    said = repr(cuda) if cuda else "None"
    (site / "torch" / "version.py").write_text(f"cuda: Optional[str] = {said}\n")
    info = site / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return site
