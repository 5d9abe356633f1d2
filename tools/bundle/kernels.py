"""A folder of compiled kernels, FOLDER/NAME/NAME.so, and what it says of itself.

Its manifest names FlashInfer, torch, CUDA, the architectures (`arch` as a text or `architectures`
as a list) and the modules (a list, or a table with the SHA-256 of each). Without it the folder must
lie where FlashInfer's own cache has it, …/VERSION/ARCHITECTURES/cached_ops, which
says FlashInfer's version and the architectures and nothing of torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bundle.errors import BundleError

ELF = b"\x7fELF"
MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine, elf.h
CACHE = re.compile(r"/([0-9][^/]*)/([0-9]+[af]?(?:_[0-9]+[af]?)*)/cached_ops$")
RUNTIME = re.compile(rb"libcudart\.so\.([0-9]+)")
TORCH = re.compile(rb"lib(?:torch|c10)[a-z_]*\.so")
MANIFESTS = ("kernels.json", "manifest.json")
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
    """Raises BundleError for a folder without kernels, or one that does not say what they are for.

    What its manifest does not list is left out.
    """
    found = {so.stem: so for so in sorted(folder.glob("*/*.so")) if so.parent.name == so.stem}
    if not found:
        raise BundleError(f"no NAME/NAME.so in '{folder}': `{COMMAND}` makes such a folder")
    said = _said(folder)
    names = said.get("modules") or sorted(found)
    if missing := sorted(set(names) - set(found)):
        raise BundleError(f"'{folder}' lacks {', '.join(missing)}, which its manifest lists")
    modules = {name: found[name] for name in sorted(names)}
    contents = {name: so.read_bytes() for name, so in modules.items()}
    for name, digest in _digests(said.get("modules")).items():
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise BundleError(f"{modules[name]} is damaged: `{COMMAND}` makes it anew")
    return Kernels(
        modules=modules,
        flashinfer=str(said["flashinfer"]),
        torch=str(said.get("torch") or "").partition("+")[0],
        cuda=".".join(str(said.get("cuda") or "").split(".")[:2]),
        arch=_spelled(said["arch"]),
        machine=_one({_machine(name, data) for name, data in contents.items()}, folder),
        runtime=_one({one[1].decode() for data in contents.values() if (one := _linked(data))}),
        linked_to_torch=any(TORCH.search(data) for data in contents.values()),
    )


def _said(folder: Path) -> dict[str, Any]:
    file = next((one for name in MANIFESTS if (one := folder / name).exists()), None)
    if file is None:
        place = CACHE.search(str(folder.resolve()))
        if place is None:
            raise BundleError(
                f"'{folder}' has no {MANIFESTS[0]} that says what the kernels are for: `{COMMAND}` "
                "writes it"
            )
        return {"flashinfer": place[1], "arch": place[2].replace("_", " ")}
    try:
        said: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise BundleError(f"'{file}' is no JSON: {error}") from error
    said.setdefault("arch", said.get("architectures"))
    if missing := [key for key in ("flashinfer", "arch", "modules") if not said.get(key)]:
        raise BundleError(f"'{file}' does not say {' and '.join(missing)}: `{COMMAND}` does")
    return said


def _digests(modules: object) -> dict[str, str]:
    return (
        {name: one["sha256"] for name, one in modules.items()} if isinstance(modules, dict) else {}
    )


def _spelled(arch: object) -> str:
    """ "9.0a" also of "90a", several parted by blanks."""
    words = arch if isinstance(arch, list) else str(arch).replace(",", " ").split()
    whole = [re.fullmatch(r"(\d+?)\.?(\d[af]?)", str(word)) for word in words]
    if not all(whole):
        raise BundleError(f"'{arch}' names no architecture, as 9.0a does")
    return " ".join(f"{one[1]}.{one[2]}" for one in whole if one)


def _machine(name: str, data: bytes) -> str:
    number = int.from_bytes(data[18:20], "little")
    if data[:4] != ELF or number not in MACHINES:
        raise BundleError(f"{name}.so is no library for Linux on {' or '.join(MACHINES.values())}")
    return MACHINES[number]


def _linked(data: bytes) -> re.Match[bytes] | None:
    return RUNTIME.search(data)


def _one(found: set[str], folder: Path | None = None) -> str:
    if len(found) > 1:
        raise BundleError(f"kernels of one folder are for {' and '.join(sorted(found))}")
    return found.pop() if found else ""
