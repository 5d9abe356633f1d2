"""How a process of the engine imports: what it takes, and nothing beside it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from engine.models.registry import family_for
from engine.process.compiler import leave_out

# What transformers imports wherever it is installed, and needs for losses of training, for its own
# processors of pictures and sound, and for draft models: nothing that an engine calls.
UNUSED = ("librosa", "pandas", "scipy", "sklearn", "torchaudio", "torchvision")


@contextmanager
def sparing() -> Iterator[None]:
    """Import meanwhile as if `UNUSED` were not installed, and keep all of it from the collector.

    For a process that is ours alone: transformers takes them for missing until it ends. Whoever
    else needs one later has it, as a family that measures itself with the longest sound. Of torch's
    compiler nothing comes until somebody compiles.
    """
    absent = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: not to be found
    leave_out()
    gc.disable()  # a quarter of the time, and it finds next to nothing
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
        gc.freeze()  # nor is it looked through again between steps
        gc.enable()


def bring(folder: str) -> None:
    """Import torch, the engine and transformers' class of a checkpoint, which takes seconds."""
    _remember_one_process()
    import_module("engine.core")
    family_for(folder).model_class()


def _remember_one_process() -> None:
    """Have transformers take torch for one that knows of one process, as it asks once only.

    Ranks are ours: transformers' own would have 40 MB of tensors over several processes imported.
    """
    from torch import distributed
    from transformers.utils.import_utils import is_torch_distributed_available

    available = distributed.is_available
    distributed.is_available = lambda: False
    try:
        is_torch_distributed_available()
    finally:
        distributed.is_available = available
