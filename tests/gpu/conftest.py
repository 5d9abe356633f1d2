from __future__ import annotations

from tests.engine.conftest import checkpoint, reference

__all__ = ["checkpoint", "reference"]
