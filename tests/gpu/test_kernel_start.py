"""When an engine compiles: before it loads anything, and never once it takes requests."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.reference import engine_options
from bench.stand_in import torch_flashinfer
from bench.stand_in.platforms import Recording, cuda_path
from engine.core import Engine
from engine.kernels.architecture import named
from engine.kernels.compiler import Target
from engine.kernels.module import KernelModule
from engine.kernels.stock import KernelsMissing, Stock
from engine.models.loader import Progress
from engine.options import EngineOptions, KernelOptions
from engine.running import platform as platforms

Folder = Callable[[str], Path]


class Compiling(Recording):
    """A card whose kernels are compiled, which is noted among what it records."""

    def prepare_kernels(self, options: EngineOptions, progress: Progress) -> None:
        progress("compiling kernels 1 of 1", 1.0)

    def seal_kernels(self, options: EngineOptions) -> None:
        self.log.append("sealed")


def test_kernels_come_before_weights_and_no_more_of_them_after_the_last_recording(
    checkpoint: Folder,
) -> None:
    phases: list[str] = []
    card = Compiling()
    options = engine_options(checkpoint("llama"), graphs=True)
    Engine(options, lambda phase, fraction: phases.append(phase), card)
    assert phases[0] == "compiling kernels 1 of 1"
    assert phases[1] == "loading weights"
    assert card.log.count("sealed") == 1
    assert card.log[-1] == "sealed"
    assert len(card.log) > 1


class MissingJITCacheError(RuntimeError):
    """As FlashInfer's, which has the specification of what was asked for."""

    def __init__(self) -> None:
        super().__init__("JIT compilation is disabled")
        self.spec = dataclasses.make_dataclass("Spec", ["name"])("mystery")


class Lacking(Recording):
    def kernels(self) -> Any:
        raise MissingJITCacheError


def test_a_kernel_that_nobody_listed_is_told_in_our_words(checkpoint: Folder) -> None:
    kernels = KernelOptions("/kernels", True, "appliance …", jit=False)
    folder = checkpoint("llama")
    with pytest.raises(KernelsMissing, match=r"the kernel mystery, .*engine\.jit=false"):
        cuda_path(folder, Lacking(), kernels=kernels)
    with pytest.raises(MissingJITCacheError):
        cuda_path(folder, Lacking())  # of an engine that was given no folder it is FlashInfer's own


def stock_for(capability: tuple[int, int]) -> Stock:
    options = KernelOptions("/kernels", True, "appliance …")
    target = Target(Path("/kernels"), (named(capability),))
    return Stock(options, target, frozenset({"ours"}), frozenset({"theirs"}))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A CUDA device that is made without one; what is done with kernels goes to the list."""
    done: list[Any] = []
    monkeypatch.setenv("FLASHINFER_DISABLE_JIT", "")
    monkeypatch.setattr(platforms, "environment", lambda capability: {})
    monkeypatch.setattr(platforms, "import_module", lambda name: torch_flashinfer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(platforms, "provide", lambda options, card, progress: stock_for(card))
    monkeypatch.setattr(platforms, "hand_over", done.append)
    return done


@pytest.mark.parametrize("jit", [True, False])
def test_a_card_provides_kernels_and_then_compiles_none(
    card: list[Any], checkpoint: Folder, jit: bool
) -> None:
    kernels = KernelOptions("/kernels", True, "appliance …", jit=jit)
    options = engine_options(checkpoint("llama"), kernels=kernels)
    platform = platforms.CudaPlatform(0)
    platform.prepare_kernels(options, lambda phase, fraction: None)
    assert card == [stock_for((9, 0))]
    assert bool(os.environ["FLASHINFER_DISABLE_JIT"]) is not jit
    known = [platform._absent(KernelModule(name, "")) for name in ("ours", "theirs", "others")]
    assert known == [None, None, "others is not compiled"]
    platform.seal_kernels(options)
    assert os.environ["FLASHINFER_DISABLE_JIT"]


def test_another_library_than_flashinfer_has_nothing_to_compile(
    card: list[Any], checkpoint: Folder
) -> None:
    kernels = KernelOptions("/kernels", True, "appliance …")
    for platform, options in (
        (
            platforms.CudaPlatform(0, torch_flashinfer),
            engine_options(checkpoint("llama"), kernels=kernels),
        ),
        (platforms.CudaPlatform(0), engine_options(checkpoint("llama"))),
    ):
        platform.prepare_kernels(options, lambda phase, fraction: None)
        platform.seal_kernels(options)
    assert card == []
    assert not os.environ["FLASHINFER_DISABLE_JIT"]
