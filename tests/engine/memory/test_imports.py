"""The server plans before anything else is started: it must not wait for torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

PLAN = """
import sys
from engine.memory.plan import plan
from engine.options import EngineOptions
modalities = tuple(sys.argv[2:])
options = EngineOptions(sys.argv[1], "float32", "cpu", 1, 16, 0, 0, 256, 4, True, 0, modalities)
made = plan(options, available_bytes=8 << 30)
assert made.encoder_bytes > 0 or not modalities
print(sorted({"torch", "transformers"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("family", "modalities"),
    [
        ("llama", ()),
        ("qwen2_vl", ("image", "video")),
        ("llava", ("image",)),
        ("gemma3", ("image",)),
        ("ultravox", ("audio",)),
    ],
)
def test_planning_imports_neither_torch_nor_transformers(
    checkpoint: Callable[[str], Path], family: str, modalities: tuple[str, ...]
) -> None:
    command = [sys.executable, "-c", PLAN, str(checkpoint(family)), *modalities]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
