"""The library as the sources have it now, its variants, and machines of several threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from engine.native.build import VARIANTS, WARNINGS, NotBuilt, build
from engine.native.library import Machine
from engine.native.loading import variants
from tests.engine.native.tampered import LIBRARY, copied, library_of, with_one_variant

PLAIN = "four_lanes"  # as aarch64 has them, of whatever vectors the compiler takes
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
        return build(tmp_path_factory.mktemp("native"), (*WARNINGS, *emulation()))
    except NotBuilt as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=[*VARIANTS.get(platform.machine(), {}), PLAIN])
def machines(
    request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Machine]:
    """Machines of one variant by their threads."""
    name, file = request.param, built
    if name == PLAIN:
        if LIBRARY in os.environ or platform.machine() != "x86_64":
            pytest.skip("aarch64 has no other vectors")
        sources = copied(tmp_path_factory.mktemp("plain"))
        with pytest.MonkeyPatch.context() as patch:
            name = with_one_variant(patch, sources, options=())
            file = library_of(patch, sources, sources.parent, ("-O2",))
    if name not in variants(file=file):
        pytest.skip(f"this processor does not run {name}")
    return {threads: Machine(name, threads, file) for threads in THREADS}


@pytest.fixture(scope="session", params=["bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = getattr(torch, request.param)
    return found
