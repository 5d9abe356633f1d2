"""The library's own tests on an emulated ARM: `python -m tools.on_arm FOLDER [--cpu NAME] [WORDS]`.

WORDS are pytest's, of which what begins with tests/ takes the place of the tests that run else.

FOLDER is filled once: an emulator and a Python of Debian's, wheels of torch and what the tests
import, a compiler from the package index. Nothing outside it is changed. Debian on x86-64 only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from engine.native.build import WARNINGS, build

CHECKOUT = Path(__file__).resolve().parents[1]
TESTS = [
    f"tests/engine/native/test_{noun}.py"
    for noun in ("products", "quantized", "attention", "step", "choice", "likeliest", "towers")
]
PACKAGES = ("engine", "appliance", "bench", "tests")
EMULATOR = "qemu-user-static"
PYTHON = ("python3.11", "libpython3.11-stdlib", "libstdc++6")
TORCH = "torch==2.9.1"  # the last whose wheel for ARM on PyPI is for CPUs alone
WHEELS = (
    *("numpy", "scipy", "transformers", "gguf", "pytest", "sympy", "networkx", "jinja2"),
    *("pillow", "av", "soundfile", "soxr", "librosa"),
)
PLATFORMS = ("2_28", "2_27", "2_17")
APT = """APT::Architecture "arm64";
APT::Architectures {{"arm64";}};
APT::Sandbox::User "root";
Dir::State "{0}/state";
Dir::State::status "{0}/status";
Dir::Cache "{0}/cache";
Dir::Etc::sourceparts "/etc/apt/sources.list.d";
"""


def main() -> int:
    """Fill the folder where something is missing, compile, and run pytest; its exit code."""
    parser = argparse.ArgumentParser(description="the library's tests on an emulated ARM")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpu", default="max", help="what the emulator is to be")
    given, more = parser.parse_known_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    compiler = _compiler(folder / "compiler")
    emulator = _emulator(folder / "emulator")
    root, site = _system(folder / "root", folder / "apt"), _wheels(folder / "site", folder)
    checkout = _copied(folder / "checkout")
    library = build(checkout / "engine/native", WARNINGS, compiler, "aarch64")
    variables = {"PYTHONPATH": site, "OMP_NUM_THREADS": 1, "PYTHONDONTWRITEBYTECODE": 1}
    variables |= {"LIBRARY_UNDER_TEST": library, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": 1}
    set_there = [word for name, value in variables.items() for word in ("-E", f"{name}={value}")]
    python = [emulator, "-cpu", given.cpu, "-L", root, *set_there, root / "usr/bin/python3.11"]
    tests = [] if any(word.startswith("tests/") for word in more) else TESTS
    words = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *more, *tests]
    return subprocess.run([*map(str, words)], cwd=checkout, check=False).returncode


def _run(*command: object, cwd: Path | None = None, **variables: object) -> None:
    words = [*map(str, command)]
    more = {name: str(value) for name, value in variables.items()}
    subprocess.run(words, check=True, cwd=cwd, env=os.environ | more)


def _copied(to: Path) -> Path:
    """The packages, to stand beside a library of another processor."""
    shutil.rmtree(to, ignore_errors=True)
    for package in PACKAGES:
        unwanted = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(CHECKOUT / package, to / package, ignore=unwanted)
    return to


def _compiler(folder: Path) -> list[str]:
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        _run(python, "-m", "pip", "install", "-q", "ziglang")
    return [str(python), "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28"]


def _emulator(folder: Path) -> Path:
    found = folder / "usr/bin/qemu-aarch64-static"
    if not found.exists():
        folder.mkdir(exist_ok=True)
        _run("apt-get", "download", EMULATOR, cwd=folder)
        for package in folder.glob("*.deb"):
            _run("dpkg", "-x", package, folder)
    return found


def _system(root: Path, apt: Path) -> Path:
    """Python and its libraries, by apt with lists and caches of its own."""
    if not root.exists():
        for part in ("state/lists/partial", "cache/archives/partial"):
            (apt / part).mkdir(parents=True, exist_ok=True)
        (apt / "status").touch()
        (apt / "conf").write_text(APT.format(apt))
        _run("apt-get", "update", "-q", APT_CONFIG=apt / "conf")
        download = ("apt-get", "install", "-qqy", "--download-only", "--no-install-recommends")
        _run(*download, *PYTHON, APT_CONFIG=apt / "conf")
        for package in (apt / "cache/archives").glob("*.deb"):
            _run("dpkg", "-x", package, apt / "root")
        os.replace(apt / "root", root)
    return root


def _wheels(site: Path, folder: Path) -> Path:
    if not site.exists():
        fresh = folder / "site.part"
        shutil.rmtree(fresh, ignore_errors=True)
        pip = [folder / "compiler/bin/python", "-m", "pip", "install", "-q", "--target", fresh]
        pip += ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
        pip += [word for one in PLATFORMS for word in ("--platform", f"manylinux_{one}_aarch64")]
        pip += ["--platform", "manylinux2014_aarch64", "--platform", "any"]
        # what it depends on, pip would tell by the processor that it runs on itself
        _run(*pip, "--no-deps", TORCH)
        _run(*pip, *WHEELS)
        os.replace(fresh, site)
    return site


if __name__ == "__main__":
    sys.exit(main())
