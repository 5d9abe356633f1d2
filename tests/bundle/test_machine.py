"""Which machine a bundle is for, and how the right one is made."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from engine.kernels.architecture import covers
from tests.bundle import fakes

CARRIED = Path(__file__).resolve().parents[2] / "tools" / "bundle" / "carried"
COMPILER = shutil.which("cc")
OURS = ("tools", "appliance", "engine", "bench", "torch")
MADE = {
    "python": "3.12",
    "machine": "x86_64",
    "glibc": "2.28",
    "torch": "2.11.0",
    "cuda": "13.0",
    "flashinfer": "0.7.2.post1",
    "arch": "9.0a",
}
DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int number) { *device = 7; return number; }
int cuDeviceGetName(char *name, int size, int device) { name[0] = 'X'; name[1] = 0; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device)
{ *value = which == 75 ? 8 : which == 76 ? 6 : -1; return device != 7; }
"""


@pytest.fixture(scope="module")
def carried() -> ModuleType:
    """The module that is carried, which imports nothing of ours."""
    spec = importlib.util.spec_from_file_location("carried_machine", CARRIED / "machine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def line(carried: ModuleType, **changed: object) -> str:
    right = carried.Machine(
        python="3.12",
        machine="x86_64",
        glibc="2.36",
        torch="2.11.0+cu130",
        cuda="13.0",
        card="NVIDIA H100",
        capability=(9, 0),
    )
    return carried.mismatch(MADE, dataclasses.replace(right, **changed))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"torch": "2.11.1"},  # a correction
        {"cuda": "13.2"},  # of which the runtime has the same name
        {"flashinfer": "0.7.2.post1"},
        {"card": "", "capability": (0, 0)},  # an image is made where none is
        {"glibc": ""},
    ],
)
def test_the_machine_that_it_was_made_for(carried: ModuleType, changed: dict[str, object]) -> None:
    assert line(carried, **changed) == ""


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"card": "NVIDIA A100", "capability": (8, 0)},
            "made for arch 9.0a, but here is NVIDIA A100 of arch 8.0: appliance recipe=NAME "
            "engine=cuda task=kernels kernels.folder=FOLDER 'kernels.arch=\"8.0\"', then "
            "make bundle KERNELS_FOLDER=FOLDER",
        ),
        (
            {"torch": "2.13.0+cu130"},
            "made for torch 2.11.0, but here is torch 2.13.0+cu130: make bundle "
            'KERNELS_FOLDER=FOLDER ARGS="--torch 2.13.0"',
        ),
        (
            {"cuda": "12.8"},
            "made for CUDA 13.0, but here is CUDA 12.8: appliance recipe=NAME "
            "engine=cuda task=kernels kernels.folder=FOLDER 'kernels.arch=\"9.0a\"' (with nvcc "
            "12.8), then make bundle KERNELS_FOLDER=FOLDER",
        ),
        (
            {"flashinfer": "0.7.3"},
            "made for FlashInfer 0.7.2.post1, but here is FlashInfer 0.7.3: appliance recipe=NAME "
            "engine=cuda task=kernels kernels.folder=FOLDER 'kernels.arch=\"9.0a\"' (with "
            "flashinfer-python==0.7.3), then make bundle KERNELS_FOLDER=FOLDER; or remove "
            "the one here: pip uninstall flashinfer-python",
        ),
        (
            {"python": "3.11", "torch": "2.12.0", "card": "NVIDIA L4", "capability": (8, 9)},
            "made for Python 3.12, torch 2.11.0, arch 9.0a, but here is Python 3.11, torch 2.12.0, "
            "NVIDIA L4 of arch 8.9: appliance recipe=NAME engine=cuda task=kernels "
            "kernels.folder=FOLDER 'kernels.arch=\"8.9\"', then make bundle "
            'KERNELS_FOLDER=FOLDER ARGS="--python 3.11 --torch 2.12.0"',
        ),
    ],
)
def test_another_machine_is_one_line_that_names_both_and_the_command(
    carried: ModuleType, changed: dict[str, object], told: str
) -> None:
    assert line(carried, **changed) == told


def test_what_no_other_bundle_mends_says_so(carried: ModuleType) -> None:
    assert "has no torch" in line(carried, torch="", cuda="")
    assert "pip install torch==2.11.0" in line(carried, torch="2.11.0+cpu", cuda="")
    assert "here is glibc 2.17" in line(carried, glibc="2.17")
    assert "here is aarch64" in line(carried, machine="aarch64")


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("9.0a", (9, 0), True),
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),
        ("8.6", (8, 0), False),
        ("8.0 9.0a", (9, 0), True),
        ("8.0 9.0a", (10, 0), False),
        ("10.0a", (10, 3), False),
        ("10.0f", (10, 3), True),
        ("12.0f", (12, 1), True),
        ("9.0a", (8, 9), False),
    ],
)
def test_which_cards_machine_code_runs_on(
    carried: ModuleType, arch: str, capability: tuple[int, int], runs: bool
) -> None:
    assert carried.serves(arch, capability) is runs
    assert covers(arch.split(), capability) is runs  # of which it is the copy that needs no package


def test_torch_is_looked_at_and_not_imported(
    carried: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = fakes.write_torch(tmp_path, "2.11.0+cu130", "13.0")
    told = [sys.executable, "-c", "import machine; print(machine.this_machine())"]
    environment = {"PYTHONPATH": os.pathsep.join((str(CARRIED), str(site)))}
    ran = subprocess.run(told, env=environment, capture_output=True, text=True, check=True)
    assert "torch='2.11.0+cu130', cuda='13.0'" in ran.stdout
    assert carried.installed("no-such-thing") == ""


@pytest.mark.skipif(COMPILER is None, reason="a driver is compiled")
def test_the_card_is_asked_of_the_driver(tmp_path: Path) -> None:
    source = tmp_path / "driver.c"
    source.write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    told = [sys.executable, "-c", "import machine; print(*machine.first_card())"]
    environment = {"PYTHONPATH": str(CARRIED), "LD_LIBRARY_PATH": str(tmp_path)}
    ran = subprocess.run(told, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "X (8, 6)\n"


def test_what_is_carried_imports_nothing_of_ours() -> None:
    for file in CARRIED.glob("*.py"):
        text = file.read_text()
        assert not any(f"{word} {name}" in text for word in ("import", "from") for name in OURS)
