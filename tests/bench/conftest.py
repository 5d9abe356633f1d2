from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import checkpoints


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny Llama checkpoint with a seed's weights, written once a session."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(seed: int = 0) -> Path:
        path = root / str(seed)
        if not path.exists():
            checkpoints.WRITERS["llama"](path, seed=seed)
        return path

    return folder
