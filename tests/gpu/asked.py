"""`python -m tests.gpu.asked CASES`: which kernels FlashInfer looks for, in each of these cases.

FlashInfer's own wrappers and functions run here, on a CPU that says it is a card of that compute
capability, in an engine on its way to tokens; only what is compiled is not there, and each module
is noted when it is asked for. A process of its own: much of torch is pretended.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any

import torch

from engine.kernels.needed import needed
from engine.models.registry import family_for
from engine.options import EngineOptions


class Nothing:
    """A compiled module that computes nothing, and draws token 0."""

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **_: Any) -> list[int]:
            if name.startswith("sampling"):
                for tensor in arguments:
                    if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.int32:
                        tensor.zero_()
            return []

        return call


class Card:
    """A compute capability that this CPU claims to have, and the modules that were asked for."""

    def __init__(self) -> None:
        self.capability = (0, 0)
        self.asked: set[str] = set()

    def pretend(self, folder: str) -> Any:
        """FlashInfer, made to take this CPU for a card; what it writes goes to `folder`."""
        os.environ["FLASHINFER_CUDA_ARCH_LIST"] = "8.0 9.0a 10.0a"
        os.environ["FLASHINFER_USE_CUDA_NORM"] = "1"
        os.environ["FLASHINFER_WORKSPACE_BASE"] = folder
        import flashinfer
        from flashinfer.jit import core

        def load(spec: Any) -> Nothing:
            self.asked.add(spec.name)
            return Nothing()

        def pageable(*sizes: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            return empty(*sizes, **options)

        empty = torch.empty
        core.JitSpec.build_and_load = load
        torch.empty = pageable
        torch.cuda.get_device_capability = lambda device=None: self.capability
        torch.cuda.current_device = lambda: 0
        torch.Tensor.is_cuda = property(lambda tensor: True)  # type: ignore[assignment]
        return flashinfer

    def begin(self, capability: tuple[int, int]) -> None:
        """Another card, on which nothing is loaded yet."""
        self.capability = capability
        self.asked.clear()
        for kept in gc.get_objects():
            if isinstance(kept, _lru_cache_wrapper) and kept.__module__.startswith("flashinfer."):
                kept.cache_clear()


@dataclass
class Case:
    """A family's checkpoint with `decoder` in its config.json, on a card, with `changes`."""

    family: str
    capability: tuple[int, int] = (9, 0)
    decoder: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path) -> Path:
        from tests import checkpoints

        folder = checkpoints.WRITERS[self.family](root)
        config = folder / "config.json"
        content = json.loads(config.read_text())
        content.get("text_config", content).update(self.decoder)
        config.write_text(json.dumps(content))
        return folder


def run(folder: Path, library: Any, changes: dict[str, Any]) -> EngineOptions:
    """Answer a prompt greedily and one by chance, with pictures where the model takes them."""
    from bench.reference import Recorder, greedy, picture, prompt_with_images
    from bench.stand_in.platforms import Recording, cuda_path
    from engine.request import Request
    from tests.engine.running.test_oracle import words

    engine = cuda_path(folder, Recording(library), graphs=True, dtype="bfloat16", **changes)
    tokens, media = words(9, 1), []
    if engine.options.modalities and "image" in engine.options.modalities:
        tokens, media = prompt_with_images(folder, [words(5, 1), picture(60, 90, 1)])
    drawn = greedy(3, temperature=1.0, top_k=5, top_p=0.5)
    Recorder(engine).run(
        Request("greedy", tokens, greedy(3), media), Request("drawn", tokens, drawn, media)
    )
    return engine.options


def answers(cases: list[Case]) -> Iterator[dict[str, list[str]]]:
    """What each case asked for, and what `needed` lists, by the names of FlashInfer's own specs."""
    card = Card()
    with tempfile.TemporaryDirectory() as root:
        library = card.pretend(root)
        for number, case in enumerate(cases):
            folder = case.write(Path(root) / str(number))
            card.begin(case.capability)
            options = run(folder, library, case.changes)
            asked = sorted(card.asked)
            listed = needed(family_for(folder), options, [case.capability])
            yield {"asked": asked, "listed": [module.spec().name for module in listed]}


if __name__ == "__main__":
    given = [Case(**one) for one in json.loads(sys.argv[1])]
    for case in given:
        case.capability = tuple(case.capability)  # type: ignore[assignment]
    print(json.dumps(list(answers(given))))
