"""What FlashInfer compiles its kernels with, whether it is there, and how FlashInfer is told.

It looks for all of it by rules of its own, in its `jit/cpp_ext.py` and `jit/env.py`; the same rules
are followed here, so that what is missing is said before a model is loaded.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

DEFAULT_HOME = Path("/usr/local/cuda")
HEADER = "curand_kernel.h"  # of norms and sampling
LIBRARIES = ("libcudart.so", "libcuda.so")  # linked to; a stub does for the driver's
NO_COMPILER = (
    "FlashInfer compiles its kernels and finds no {missing}: `apt install cuda-nvcc-13-0 "
    "cuda-cudart-dev-13-0 libcurand-dev-13-0 g++`, or `flashinfer install-jit-cache-wheel` for "
    "compiled ones"
)
NO_NINJA = "FlashInfer compiles its kernels and finds no ninja: `pip install ninja`"


def environment(capability: tuple[int, int]) -> dict[str, str]:
    """Variables for FlashInfer, to be set before it is imported; those set already stay.

    Norms are the kernels that are compiled once and kept, not those that another package of its
    compiles anew in each process. Kernels are built for the card of this `capability` alone, with
    the toolkit that `missing_tools` looked at. `ninja` is looked for on PATH only, and may lie
    beside this Python, in a virtual environment that is not there.
    """
    wanted = {
        "FLASHINFER_USE_CUDA_NORM": "1",
        "FLASHINFER_CUDA_ARCH_LIST": "{}.{}".format(*capability),  # FlashInfer adds a letter
    }
    home = cuda_home()
    if home is not None:
        wanted["CUDA_HOME"] = str(home)
    unset = {name: value for name, value in wanted.items() if not os.environ.get(name)}
    if shutil.which("ninja") is None and shutil.which("ninja", path=search_path()) is not None:
        unset["PATH"] = search_path()
    return unset


def search_path() -> str:
    """PATH, and behind it the folder of this Python."""
    path = os.environ.get("PATH", os.defpath)
    return os.pathsep.join((path, str(Path(sys.executable).parent)))


def missing_tools() -> str | None:
    """What FlashInfer lacks to have kernels, with the command that helps; None if nothing."""
    if prebuilt():
        return None
    missing = missing_part()
    if missing is not None:
        return NO_COMPILER.format(missing=missing)
    if shutil.which("ninja", path=search_path()) is None:
        return NO_NINJA
    return None


def prebuilt() -> bool:
    """Whether FlashInfer has compiled kernels, or was told to compile none."""
    if os.environ.get("FLASHINFER_DISABLE_JIT"):
        return True
    if importlib.util.find_spec("flashinfer_jit_cache") is not None:
        return True
    found = importlib.util.find_spec("flashinfer")
    folders = (found.submodule_search_locations if found else None) or []
    return any(any(Path(folder).glob("data/aot/*/*.so")) for folder in folders)


def missing_part() -> str | None:
    """The first part of a compiler that is not where FlashInfer looks for it."""
    home = cuda_home()
    if home is None:
        return "nvcc"
    if not (home / "bin" / "nvcc").exists():
        return f"nvcc in {home}/bin"
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        return "C++ compiler"
    if not (home / "include" / HEADER).exists():
        return HEADER
    return next((name for name in LIBRARIES if not linked(name, home, compiler)), None)


def linked(library: str, home: Path, compiler: list[str]) -> bool:
    """Whether a library lies in the toolkit, or where the compiler looks by itself."""
    if any((home / folder / library).exists() for folder in ("lib64", "lib64/stubs")):
        return True
    asked = [*compiler, f"-print-file-name={library}"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - theirs
    return answer.stdout.strip() not in ("", library)  # what it can't find, it repeats


def cuda_home() -> Path | None:
    """The toolkit's folder; None if there is nothing to find it by."""
    told = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if told:
        return Path(told)
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        return Path(nvcc).parent.parent
    return DEFAULT_HOME if DEFAULT_HOME.exists() else None
