from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.reference import Reference
from tests import checkpoints


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a family, written once a session."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.set_num_threads(1)

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            checkpoints.WRITERS[family](path)
        return path

    return folder


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[[str], Path]) -> Callable[[str], Reference]:
    known: dict[str, Reference] = {}

    def model(family: str) -> Reference:
        if family not in known:
            known[family] = Reference(checkpoint(family))
        return known[family]

    return model
