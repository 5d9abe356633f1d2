"""What this machine is, and whether a bundle was made for it. Needs Python alone."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAJOR, MINOR = 75, 76  # CUdevice_attribute: COMPUTE_CAPABILITY_MAJOR, _MINOR
KERNELS = (
    "appliance recipe=NAME engine=cuda task=kernels kernels.folder=FOLDER 'kernels.arch=\"{arch}\"'"
)
BUNDLE = "make bundle KERNELS_FOLDER=FOLDER"


@dataclass(frozen=True)
class Machine:
    """Empty where there is none, as `cuda` of a torch for CPUs."""

    python: str
    machine: str
    glibc: str
    torch: str = ""
    cuda: str = ""
    flashinfer: str = ""
    card: str = ""
    capability: tuple[int, int] = (0, 0)


def this_machine() -> Machine:
    """As the Python sees it that runs this."""
    card, capability = first_card()
    return Machine(
        python="{}.{}".format(*sys.version_info),
        machine=platform.machine(),
        glibc=platform.libc_ver()[1],
        torch=installed("torch"),
        cuda=cuda_of_torch(),
        flashinfer=installed("flashinfer-python"),
        card=card,
        capability=capability,
    )


def installed(name: str) -> str:
    """A package's version; empty if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cuda_of_torch() -> str:
    """As torch.version.cuda, without the seconds that importing torch takes."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return ""
    try:
        text = Path(found.origin).with_name("version.py").read_text()
    except OSError:
        return ""
    said = re.search(r"^cuda\b.*?=\s*['\"]([0-9.]+)", text, re.M)
    return said[1] if said else ""


def first_card() -> tuple[str, tuple[int, int]]:
    """Name and compute capability of the card that the driver lists first; empty without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "", (0, 0)
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    )
    if failed:
        return "", (0, 0)
    return name.value.decode(), (major.value, minor.value)


def serves(arch: str, capability: tuple[int, int]) -> bool:
    """Whether machine code for `arch`, as "8.0 9.0a", runs on a card.

    Code for 8.0 runs on 8.x from there on; with an "f" within its family, which is the same; with
    an "a" on that card alone (CUDA's programming guide, "compute capabilities").
    """
    for one in arch.split():
        major, minor = (int(number) for number in one.rstrip("af").split("."))
        if major == capability[0] and (
            minor == capability[1] or (minor < capability[1] and not one.endswith("a"))
        ):
            return True
    return False


def mismatch(made: dict[str, Any], here: Machine) -> str:
    """One line if a bundle with this manifest is not for this machine; empty if it is."""
    if not here.torch:
        return (
            f"made for torch {made['torch']}, but {sys.executable} has no torch; is it in another "
            "environment? PYTHON=/path/to/python ./install.sh"
        )
    if not here.cuda:
        return (
            f"made for torch {made['torch']} with CUDA {made['cuda']}, but here is torch "
            f"{here.torch} without CUDA: pip install torch=={made['torch']}"
        )
    wants, has, after = [], [], ""  # what differs
    told, beside = [], []  # how the right one is made: arguments, and where kernels are compiled
    arch = made["arch"]

    def differs(want: str, have: str) -> None:
        wants.append(want)
        has.append(have)

    if made["python"] != here.python:
        differs(f"Python {made['python']}", f"Python {here.python}")
        told.append(f"--python {here.python}")
    if numbers(made["torch"])[:2] != numbers(here.torch)[:2]:
        differs(f"torch {made['torch']}", f"torch {here.torch}")
        told.append(f"--torch {here.torch.partition('+')[0]}")
    if numbers(here.glibc) and numbers(here.glibc) < numbers(made["glibc"]):
        differs(f"glibc {made['glibc']} or newer", f"glibc {here.glibc}")
    if made["machine"] != here.machine:
        differs(made["machine"], here.machine)
        beside.append(f"on {here.machine}")
    if numbers(made["cuda"])[:1] != numbers(here.cuda)[:1]:  # of which the runtime is linked to
        differs(f"CUDA {made['cuda']}", f"CUDA {here.cuda}")
        beside.append(f"with nvcc {here.cuda}")
    if here.flashinfer and made["flashinfer"] != here.flashinfer:
        differs(f"FlashInfer {made['flashinfer']}", f"FlashInfer {here.flashinfer}")
        beside.append(f"with flashinfer-python=={here.flashinfer}")
        after = "; or remove the one here: pip uninstall flashinfer-python"
    compiled = bool(beside)
    if here.card and not serves(arch, here.capability):
        arch = "{}.{}".format(*here.capability)
        differs(f"arch {made['arch']}", f"{here.card} of arch {arch}")
        compiled = True
    if not wants:
        return ""
    makes = BUNDLE + (f' ARGS="{" ".join(told)}"' if told else "")
    if compiled:
        kernels = KERNELS.format(arch=arch)
        where = f" ({' and '.join(beside)})" if beside else ""
        makes = f"{kernels}{where}, then {makes}"
    return f"made for {', '.join(wants)}, but here is {', '.join(has)}: {makes}{after}"


def unmet(beside: dict[str, str]) -> str:
    """One line if the machine's own packages are not what the carried ones need."""
    wrong = []
    for name, bounds in beside.items():
        version = installed(name)
        if not version:
            wrong.append(f"{name} is missing")
        elif bounds and not within(version, bounds):
            wrong.append(f"{name} {version} is not {bounds}")
    if not wrong:
        return ""
    return (
        f"not as what is carried needs it: {', '.join(wrong)}: {sys.executable} -m pip list "
        f'--format=freeze > has.txt, then {BUNDLE} ARGS="--has has.txt"'
    )


def within(version: str, bounds: str) -> bool:
    specifiers: Any  # transformers brings packaging; pip has its own
    try:
        specifiers = importlib.import_module("packaging.specifiers")
    except ImportError:
        specifiers = importlib.import_module("pip._vendor.packaging.specifiers")
    return bool(specifiers.SpecifierSet(bounds).contains(version, prereleases=True))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(one) for one in re.findall(r"\d+", version.partition("+")[0]))


def environment(home: Path, target: str) -> dict[str, str]:
    """Variables by which everything that was installed is found, whatever the folder."""
    folders = [str(home), target, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(one for one in folders if one),
        "PYTHONSAFEPATH": "1",  # not what lies in the folder that it is called from
        "FLASHINFER_DISABLE_JIT": os.environ.get("FLASHINFER_DISABLE_JIT") or "1",
    }
