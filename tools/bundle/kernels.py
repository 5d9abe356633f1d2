"""Compiled kernels as `task=kernels` leaves them, and what machine code is in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.kernels.folder import KernelFolder, KernelsUnfit
from tools.bundle.errors import BundleError

ELF = b"\x7fELF"
MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine, elf.h
RUNTIME = re.compile(rb"libcudart\.so\.([0-9]+)")
TORCH = re.compile(rb"lib(?:torch|c10)[a-z_]*\.so")
COMMAND = "appliance recipe=NAME engine=cuda task=kernels kernels.folder=FOLDER"


@dataclass(slots=True, frozen=True)
class Kernels:
    """What is compiled, for what. Empty `torch` and `cuda`: the folder does not say."""

    modules: dict[str, Path]
    flashinfer: str
    torch: str
    cuda: str  # "13.0"
    arch: str  # "8.0 9.0a"
    machine: str
    runtime: str  # "13": the libcudart that they are linked to
    linked_to_torch: bool


def read_kernels(folder: Path) -> Kernels:
    """Raises BundleError for a folder without kernels, or with damaged ones."""
    kept = KernelFolder(folder)
    try:
        manifest = kept.manifest()
    except KernelsUnfit as error:
        raise BundleError(f"{error}, and `{COMMAND}` compiles them anew") from error
    if manifest is None or not manifest.modules:
        raise BundleError(f"no compiled kernels in '{folder}': `{COMMAND}` makes such a folder")
    modules = {name: kept.library(name) for name in sorted(manifest.modules)}
    if broken := sorted(set(modules) - kept.intact()):
        raise BundleError(
            f"{modules[broken[0]]} is missing or damaged: `{COMMAND}` compiles it anew"
        )
    contents = {name: library.read_bytes() for name, library in modules.items()}
    versions = manifest.versions
    return Kernels(
        modules=modules,
        flashinfer=versions.flashinfer,
        torch=versions.torch,
        cuda=".".join(versions.cuda.split(".")[:2]),
        arch=" ".join(manifest.architectures),
        machine=_one({_machine(name, data) for name, data in contents.items()}),
        runtime=_one({one[1].decode() for one in map(RUNTIME.search, contents.values()) if one}),
        linked_to_torch=any(TORCH.search(data) for data in contents.values()),
    )


def _machine(name: str, data: bytes) -> str:
    number = int.from_bytes(data[18:20], "little")
    if data[:4] != ELF or number not in MACHINES:
        raise BundleError(f"{name}.so is no library for Linux on {' or '.join(MACHINES.values())}")
    return MACHINES[number]


def _one(found: set[str]) -> str:
    if len(found) > 1:
        raise BundleError(f"kernels of one folder are for {' and '.join(sorted(found))}")
    return found.pop() if found else ""
