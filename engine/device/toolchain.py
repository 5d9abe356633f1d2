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

from engine.errors import EngineError

DEFAULT_HOME = Path("/usr/local/cuda")
HEADER = "curand_kernel.h"  # of norms and sampling
PACKAGED = {"flashinfer": "data/aot/*/*.so", "flashinfer_jit_cache": "**/*.so"}
RUNTIME = "lib/libcudart.so.*"
WHEEL_PARTS = ("bin/nvcc", "nvvm/bin/cicc", "include/crt", f"include/{HEADER}", RUNTIME)
LIBRARIES = ("libcudart.so", "libcuda.so")  # linked to; a stub does for the driver's
NO_COMPILER = (
    "FlashInfer compiles its kernels and finds no {missing}: `apt install cuda-nvcc-13-0 "
    "cuda-cudart-dev-13-0 libcurand-dev-13-0 g++`, or g++ and, in a checkout, `make install "
    "TORCH_INDEX= EXTRAS=cuda,cuda-build`"
)
NO_NINJA = "FlashInfer compiles its kernels and finds no ninja: `pip install ninja`"


class ToolkitMissing(EngineError):
    """Nothing is there to compile with, or not all of it."""

    correctable = True


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


def missing_tools(compiling: bool = False) -> str | None:
    """What FlashInfer lacks to have kernels, with the command that helps; None if nothing.

    Compiled ones will do, unless it is asked for `compiling`.
    """
    if prebuilt() and not compiling:
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
    return importlib.util.find_spec("flashinfer_jit_cache") is not None or bool(packaged())


def packaged() -> frozenset[str]:
    """Names of the compiled kernels that came inside of FlashInfer's packages."""
    files = [
        file
        for package, place in PACKAGED.items()
        for folder in folders_of(package)
        for file in folder.glob(place)
    ]
    return frozenset(file.stem for file in files if file.parent.name == file.stem)


def folders_of(package: str) -> list[Path]:
    """Where an installed package lies, without importing it."""
    found = importlib.util.find_spec(package)
    return [Path(one) for one in getattr(found, "submodule_search_locations", None) or []]


def missing_part() -> str | None:
    """The first part of a compiler that is not where FlashInfer looks for it."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if complete_home(compiler) is not None:
        return None
    if wheels() is not None:
        return None if shutil.which(compiler[0]) else "C++ compiler"
    home = cuda_home()
    return "nvcc" if home is None else missing_in(home, compiler)


def missing_in(home: Path, compiler: list[str]) -> str | None:
    """The first part that this toolkit lacks."""
    if not (home / "bin" / "nvcc").exists():
        return f"nvcc in {home}/bin"
    if shutil.which(compiler[0]) is None:
        return "C++ compiler"
    if not (home / "include" / HEADER).exists():
        return HEADER
    return next((name for name in LIBRARIES if not linked(name, home, compiler)), None)


def complete_home(compiler: list[str]) -> Path | None:
    """The machine's toolkit, if it lacks nothing."""
    home = cuda_home()
    return None if home is None or missing_in(home, compiler) else home


def wheels() -> Path | None:
    """The toolkit out of packages of the index (the extra `cuda-build`), if all of it is there.

    One that was named (`CUDA_HOME`) is meant.
    """
    if told_home() is not None:
        return None
    for folder in folders_of("nvidia"):
        for toolkit in sorted(folder.glob("cu[0-9]*"), reverse=True):
            if all(any(toolkit.glob(part)) for part in WHEEL_PARTS):
                return toolkit
    return None


def lay_out(folder: Path) -> Path:
    """The machine's toolkit, or `folder` laid out as one: links to what the packages have.

    The packages' libraries have no names that a linker finds, and no driver's library is among
    them: an empty one of its name will do, since nothing of it is used before there is a card.
    Raises ToolkitMissing.
    """
    missing = missing_tools(compiling=True)
    if missing is not None:
        raise ToolkitMissing(missing)
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    home, toolkit = complete_home(compiler), wheels()
    if home is not None:
        return home
    assert toolkit is not None
    stubs = folder / "lib64" / "stubs"
    stubs.mkdir(parents=True, exist_ok=True)
    for part in ("bin", "include", "nvvm"):
        link(folder / part, toolkit / part)
    link(folder / "lib64" / "libcudart.so", next(toolkit.glob(RUNTIME)))
    command = [*compiler, "-shared", "-x", "c", os.devnull, "-Wl,-soname,libcuda.so.1"]
    command += ["-o", str(stubs / "libcuda.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - theirs
    if done.returncode:
        raise ToolkitMissing(f"{compiler[0]} links no library: {done.stderr.strip()[:200]}")
    return folder.resolve()


def link(place: Path, target: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def linked(library: str, home: Path, compiler: list[str]) -> bool:
    """Whether a library lies in the toolkit, or where the compiler looks by itself."""
    if any((home / folder / library).exists() for folder in ("lib64", "lib64/stubs")):
        return True
    asked = [*compiler, f"-print-file-name={library}"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - theirs
    return answer.stdout.strip() not in ("", library)  # what it can't find, it repeats


def cuda_home() -> Path | None:
    """The toolkit's folder; None if there is nothing to find it by."""
    told = told_home()
    if told is not None:
        return told
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        return Path(nvcc).parent.parent
    return DEFAULT_HOME if DEFAULT_HOME.exists() else None


def told_home() -> Path | None:
    """The toolkit that the environment names."""
    told = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return Path(told) if told else None
