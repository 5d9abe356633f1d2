"""The library as the sources have it now, its variants, and machines of several threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from engine.native.build import VARIANTS, NotBuilt, build
from engine.native.library import Machine
from engine.native.loading import variants
from tests.engine.native.tampered import LIBRARY

THREADS = (1, 2, 5)  # five are more than some machines have cores


def emulation() -> tuple[str, ...]:
    """Plain C in place of a matrix unit that this processor lacks."""
    flags = Path("/proc/cpuinfo").read_text()
    return () if "amx_bf16" in flags else ("-DEMULATE_TILES",)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that was compiled just now, or the one that a test of sanitizers has put there."""
    torch.set_num_threads(1)
    if given := os.environ.get(LIBRARY):
        return Path(given)
    try:
        return build(tmp_path_factory.mktemp("native"), emulation())
    except NotBuilt as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=VARIANTS.get(platform.machine(), {"none": ()}))
def machines(request: pytest.FixtureRequest, built: Path) -> dict[int, Machine]:
    """Machines of one variant by their threads."""
    if request.param not in variants(file=built):
        pytest.skip(f"this processor does not run {request.param}")
    return {threads: Machine(request.param, threads, built) for threads in THREADS}


@pytest.fixture(scope="session", params=["bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = getattr(torch, request.param)
    return found
