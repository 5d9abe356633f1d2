"""A CUDA toolkit of shell scripts: what "compiles" is written down, and nothing is translated."""

from __future__ import annotations

from pathlib import Path

NVCC = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0;; esac
case "$*" in *--list-gpu-arch*) exit 0;; esac
{extra}
while [ $# -gt 1 ]; do case "$1" in -o) out=$2;; -MF) deps=$2;; esac; shift; done
echo object > "$out"; echo "$out:" > "$deps"
"""
CXX = """#!/bin/sh
case "$1" in -print-file-name=*) echo "${{1#-print-file-name=}}"; exit 0;; esac
while [ $# -gt 1 ]; do case "$1" in -o) out=$2;; -MF) deps=$2;; esac; shift; done
echo library > "$out"; test -z "$deps" || echo "$out:" > "$deps"
"""


class Toolkit:
    """Folders of one under `root`; `environment` has FlashInfer find it."""

    def __init__(self, root: Path) -> None:
        self.home, self.log = root / "cuda", root / "nvcc.log"
        self.cxx = root / "c++"
        self.fail("")
        for file in ("include/curand_kernel.h", "lib64/libcudart.so", "lib64/stubs/libcuda.so"):
            place = self.home / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("")
        self.script(self.cxx, CXX.format())

    def fail(self, line: str) -> None:
        """Have nvcc run a line of shell before it makes anything."""
        self.script(self.home / "bin" / "nvcc", NVCC.format(log=self.log, extra=line))

    def script(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {"CUDA_HOME": str(self.home), "CXX": str(self.cxx), "FLASHINFER_DISABLE_JIT": ""}

    @property
    def compiled(self) -> list[str]:
        """Command lines that compiled something."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if " -c " in line]
