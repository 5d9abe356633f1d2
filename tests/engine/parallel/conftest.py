from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.conftest import reference
from tests.engine.parallel import ranked

__all__ = ["checkpoint", "reference"]  # of its own: a session has one for each `checkpoint`


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a family, or of an odd one, written once a session."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            ranked.WRITERS[family](path)
        return path

    return folder
