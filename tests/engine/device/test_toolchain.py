"""FlashInfer's compiler is looked for where FlashInfer looks, and FlashInfer is told of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from engine.device import toolchain
from engine.device.toolchain import environment, missing_tools
from engine.running import platform as platforms

TOLD = ("CUDA_HOME", "CUDA_PATH", "CXX", "FLASHINFER_DISABLE_JIT", "FLASHINFER_CUDA_ARCH_LIST")
COMPILER = """#!/bin/sh
echo "${1#-print-file-name=}"
"""


class Machine:
    """Folders in place of a machine's: a toolkit, what is on PATH, and this Python's own."""

    def __init__(self, root: Path) -> None:
        self.home, self.path, self.python = root / "cuda", root / "bin", root / "venv" / "bin"
        for folder in (self.path, self.python):
            folder.mkdir(parents=True)
        self.file(self.home / "bin" / "nvcc")
        self.file(self.home / "include" / "curand_kernel.h")
        self.file(self.home / "lib64" / "libcudart.so")
        self.file(self.home / "lib64" / "stubs" / "libcuda.so")
        self.file(self.path / "c++", COMPILER)
        self.file(self.path / "ninja")

    def file(self, path: Path, text: str = "#!/bin/sh\n") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that lacks nothing, its toolkit the default one."""
    machine = Machine(tmp_path)
    for name in (*TOLD, "FLASHINFER_USE_CUDA_NORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(machine.path))
    monkeypatch.setattr(sys, "executable", str(machine.python / "python"))
    monkeypatch.setattr(toolchain, "DEFAULT_HOME", machine.home)
    specs: dict[str, object] = {}
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", specs.get)
    return machine


def test_nothing_is_missing(machine: Machine) -> None:
    assert missing_tools() is None


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("cuda/bin/nvcc", "no nvcc in .*/cuda/bin:"),
        ("bin/c++", r"no C\+\+ compiler:"),
        ("cuda/include/curand_kernel.h", "no curand_kernel.h:"),
        ("cuda/lib64/libcudart.so", "no libcudart.so:"),
        ("cuda/lib64/stubs/libcuda.so", "no libcuda.so:"),
        ("bin/ninja", "no ninja: `pip install ninja`"),
    ],
)
def test_each_part_is_looked_for(part: str, named: str, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / part).unlink()
    missing = missing_tools()
    assert missing is not None
    assert "\n" not in missing
    assert re.search(named, missing)
    if part != "bin/ninja":
        for package in ("cuda-nvcc-13-0", "cuda-cudart-dev-13-0", "libcurand-dev-13-0", "g++"):
            assert package in missing


def test_the_linker_may_know_where_a_library_lies(machine: Machine) -> None:
    (machine.home / "lib64" / "stubs" / "libcuda.so").unlink()
    machine.file(machine.path / "c++", "#!/bin/sh\necho /usr/lib/somewhere/libcuda.so\n")
    assert missing_tools() is None


def test_a_toolkit_that_was_named_comes_before_one_on_the_path(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashInfer takes CUDA_HOME and does not look on, whatever is there."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    machine.file(machine.path / "nvcc")
    assert f"no nvcc in {tmp_path}/nowhere/bin" in str(missing_tools())
    monkeypatch.setenv("CUDA_HOME", str(machine.home))
    assert missing_tools() is None


def jit_disabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")


def cache_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {"flashinfer_jit_cache": object()}
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", found.get)


def kernels_inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site" / "flashinfer"
    kernel = package / "data" / "aot" / "norm" / "norm.so"
    kernel.parent.mkdir(parents=True)
    kernel.write_bytes(b"")
    spec = ModuleSpec("flashinfer", None)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", {"flashinfer": spec}.get)


@pytest.mark.parametrize("given", [jit_disabled, cache_installed, kernels_inside])
def test_compiled_kernels_need_no_compiler(
    given: Callable[[pytest.MonkeyPatch, Path], None],
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (machine.home / "bin" / "nvcc").unlink()
    (machine.path / "ninja").unlink()
    assert missing_tools() is not None
    given(monkeypatch, tmp_path)
    assert missing_tools() is None


def test_ninja_beside_this_python_is_put_on_the_path(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashInfer runs "ninja", whatever the virtual environment is that it was installed into."""
    assert "PATH" not in environment((9, 0))  # it is there already
    (machine.path / "ninja").rename(machine.python / "ninja")
    assert missing_tools() is None
    with pytest.raises(FileNotFoundError):
        subprocess.run(["ninja"], check=True)  # noqa: S607 - by PATH is what is tested
    monkeypatch.setenv("PATH", environment((9, 0))["PATH"])
    subprocess.run(["ninja"], check=True)  # noqa: S607 - by PATH is what is tested
    assert os.environ["PATH"].startswith(str(machine.path))


def test_what_was_set_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment((8, 9)) == {
        "CUDA_HOME": str(machine.home),
        "FLASHINFER_CUDA_ARCH_LIST": "8.9",
        "FLASHINFER_USE_CUDA_NORM": "1",
    }
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "8.9 9.0a")
    monkeypatch.setenv("CUDA_PATH", "/opt/cuda")
    monkeypatch.setenv("FLASHINFER_USE_CUDA_NORM", "0")
    assert environment((8, 9)) == {"CUDA_HOME": "/opt/cuda"}


@pytest.mark.parametrize(
    ("capability", "target"),
    [((8, 0), (8, "0")), ((9, 0), (9, "0a")), ((10, 0), (10, "0a")), ((10, 3), (10, "3a"))],
)
def test_flashinfer_names_the_card_as_it_does_by_itself(
    capability: tuple[int, int],
    target: tuple[int, str],
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    context = pytest.importorskip("flashinfer.compilation_context").CompilationContext
    monkeypatch.setenv(
        "FLASHINFER_CUDA_ARCH_LIST", environment(capability)["FLASHINFER_CUDA_ARCH_LIST"]
    )
    named = context().TARGET_CUDA_ARCHS
    assert named == {target}


def test_flashinfer_is_imported_after_it_was_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, str] = {}

    def imported(name: str) -> object:
        told.update({key: value for key, value in os.environ.items() if "FLASHINFER" in key})
        return object()

    monkeypatch.setenv("FLASHINFER_USE_CUDA_NORM", "")  # restored afterwards
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "")
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setattr(platforms, "import_module", imported)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
    platforms.CudaPlatform(1)
    assert told["FLASHINFER_USE_CUDA_NORM"] == "1"
    assert told["FLASHINFER_CUDA_ARCH_LIST"] == "9.1"


@pytest.fixture
def wheels(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose toolkit lacks a header, beside the package index's toolkit."""
    (machine.home / "include" / "curand_kernel.h").unlink()
    root = tmp_path / "site" / "nvidia"
    for part in ("bin/nvcc", "nvvm/bin/cicc", "include/crt/x.h", "include/curand_kernel.h"):
        machine.file(root / "cu13" / part)
    machine.file(root / "cu13" / "lib" / "libcudart.so.13")
    found = ModuleSpec("nvidia", None)
    found.submodule_search_locations = [str(root)]
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", {"nvidia": found}.get)
    return root / "cu13"


LINKER = """#!/bin/sh
while [ $# -gt 1 ]; do case "$1" in -o) echo "$@" > "$2";; esac; shift; done
"""


def test_packages_of_the_index_are_laid_out_as_a_toolkit(
    machine: Machine, wheels: Path, tmp_path: Path
) -> None:
    machine.file(machine.path / "c++", LINKER)
    assert missing_tools() is None
    home = toolchain.lay_out(tmp_path / "laid out")
    assert (home / "bin" / "nvcc").samefile(wheels / "bin" / "nvcc")
    assert (home / "lib64" / "libcudart.so").samefile(wheels / "lib" / "libcudart.so.13")
    assert (home / "lib64" / "stubs" / "libcuda.so").exists()
    assert toolchain.missing_in(home, ["c++"]) is None
    assert toolchain.lay_out(tmp_path / "laid out") == home  # again, as after a failure


def test_a_toolkit_that_lacks_nothing_comes_before_packages(
    machine: Machine, wheels: Path, tmp_path: Path
) -> None:
    machine.file(machine.home / "include" / "curand_kernel.h")
    assert toolchain.lay_out(tmp_path / "laid out") == machine.home
    assert not (tmp_path / "laid out").exists()


def test_a_toolkit_that_was_named_is_meant(
    machine: Machine, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(machine.home))
    assert "no curand_kernel.h:" in str(missing_tools())
    with pytest.raises(toolchain.ToolkitMissing, match=r"no curand_kernel\.h:"):
        toolchain.lay_out(tmp_path / "laid out")


@pytest.mark.parametrize(
    "part", ["bin/nvcc", "nvvm/bin/cicc", "include/crt", "lib/libcudart.so.13"]
)
def test_each_package_is_needed(machine: Machine, wheels: Path, part: str) -> None:
    place = wheels / part
    place.rename(place.with_name("elsewhere"))
    assert "curand_kernel.h" in str(missing_tools())


def test_packages_of_the_index_need_a_compiler_beside_them(machine: Machine, wheels: Path) -> None:
    (machine.path / "c++").unlink()
    assert "no C++ compiler:" in str(missing_tools())


def test_to_compile_takes_more_than_compiled_kernels(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.path / "ninja").unlink()
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "1")
    assert missing_tools() is None
    assert "no ninja" in str(missing_tools(compiling=True))


def test_kernels_inside_of_packages_are_known_by_name(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert toolchain.packaged() == frozenset()
    kernels_inside(monkeypatch, tmp_path)
    assert toolchain.packaged() == {"norm"}
