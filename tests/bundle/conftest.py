"""A bundle of tiny wheels, as `make bundle` writes it, and a machine to install it on."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bundle import fakes
from tools.bundle import packages
from tools.bundle.__main__ import Made, write
from tools.bundle.kernels import read_kernels
from tools.bundle.target import Target, running_python
from tools.bundle.wheel import trim

FOLDER_MB = 0.26  # 0.2 of them for scripts and the manifest
PART_MB = 0.04


@dataclass(slots=True)
class Bundle:
    """Folders of a bundle, with a site of packages that stands for the machine's."""

    folders: list[Path]
    site: Path
    python: str = sys.executable

    def run(
        self, script: str, *arguments: str, folder: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run install.sh or check.sh of a folder on the machine, where no card is seen."""
        environment = {
            "PATH": os.defpath,
            "HOME": str(self.site),
            "PYTHON": self.python,
            "PYTHONPATH": str(self.site),
            "CUDA_VISIBLE_DEVICES": "",
            "PIP_INDEX_URL": "http://127.0.0.1:9/",  # nobody answers
        }
        return subprocess.run(
            [str(self.folders[folder] / script), *arguments],
            cwd=self.site,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def part(self, number: int) -> Path:
        return next(one / f"part-{number}.zip" for one in self.folders if self._has(one, number))

    def _has(self, folder: Path, number: int) -> bool:
        return (folder / f"part-{number}.zip").exists()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    source = tmp_path / "source"
    modules = {"flashinfer/__init__.py": b"", "flashinfer/data/csrc/cake_x.cu": b"dropped"}
    whole = fakes.write_fake_wheel(source / "fi", "flashinfer-python", "0.7.2.post1", modules)
    kernels = read_kernels(fakes.write_kernels(source / "kernels"))
    trimmed = source / whole.name
    trim(whole, trimmed, kernels.modules, ())
    ours = {"appliance/__init__.py": b"", "appliance/_data/recipes/demo.yaml": b"a: 1\n"}
    files = [
        source / "bench.zip",
        trimmed,
        fakes.write_fake_wheel(source, "model-appliance", "0.1.0", ours),
        fakes.write_fake_wheel(source, "large", "1.0", {"large.py": b"", "d": fakes.noise(95_000)}),
        fakes.write_fake_wheel(
            source, "middle", "1.0", {"middle.py": b"", "d": fakes.noise(30_000)}
        ),
    ]
    with zipfile.ZipFile(files[0], "w") as made:
        made.writestr("bench/__init__.py", "")
        made.writestr("bench/gpu.py", fakes.ARGUMENTS)
    missing = packages.Missing({}, {"torch": ">=2.11"}, {}, locked=True)
    target = Target(running_python(), platform.machine())
    options = argparse.Namespace(out=tmp_path / "out", folder_mb=FOLDER_MB, part_mb=PART_MB)
    folders = write(Made(kernels, target, "2.11.0", "13.0", missing, ("sound",)), files, options)
    return Bundle(folders, fakes.write_torch(tmp_path / "site"))
