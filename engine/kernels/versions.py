"""What compiled kernels depend on, and whether a machine has it; known without importing any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

CUDA = re.compile(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", re.M)  # in torch/version.py


@dataclass(slots=True, frozen=True)
class Versions:
    """Packages that kernels were compiled with; empty where there is no such package.

    `cuda` is the toolkit's version, or the one that torch is built with.
    """

    flashinfer: str
    torch: str
    cuda: str

    def __str__(self) -> str:
        return f"FlashInfer {self.flashinfer}, torch {self.torch}, CUDA {self.cuda or 'none'}"

    def serve(self, there: Versions) -> bool:
        """Whether kernels made with these run where the others are.

        FlashInfer has to be the same, torch of the same minor version and CUDA of the same major
        one: they are linked to its runtime. A torch without CUDA may have compiled for another.
        """
        cuda = [one.cuda.partition(".")[0] for one in (self, there)]
        return (
            self.flashinfer == there.flashinfer
            and _minor(self.torch) == _minor(there.torch)
            and (not there.cuda or cuda[0] == cuda[1])
        )


def installed() -> Versions:
    """Those of this Python's packages."""
    return Versions(_version("flashinfer-python"), _version("torch"), torch_cuda())


def torch_cuda() -> str:
    """The CUDA that the installed torch is built with, read from its file; empty if none."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return ""
    file = Path(found.origin).parent / "version.py"
    match = CUDA.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return match[1] if match else ""


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""


def _minor(text: str) -> list[str]:
    return text.split(".")[:2]
