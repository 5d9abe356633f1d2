"""A folder of the user's own recipes, and the launcher as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Launch = Callable[..., subprocess.CompletedProcess[str]]
CHECKOUT = Path(__file__).resolve().parents[1]

# a shell has what it starts in the background ignore Ctrl-C, and so would every server of the tests
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Run `appliance` in an empty folder, which must still be empty afterwards."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            [sys.executable, "-m", "appliance", *argv],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert list(empty.iterdir()) == []
        return ran

    return run


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's folder: a recipe of their own, one that inherits, one named as a built-in one."""
    recipes = tmp_path / "mine" / "recipe"
    recipes.mkdir(parents=True)
    (recipes / "own.yaml").write_text(
        "# @package _global_\n# A recipe of my own.\nmodel:\n  path: /somewhere/own\n"
    )
    (recipes / "short.yaml").write_text(
        "# @package _global_\ndefaults:\n  - smollm2\n  - _self_\nmodel:\n  max_len: 99\n"
    )
    (recipes / "qwen2_vl.yaml").write_text(
        "# @package _global_\n# Mine instead.\nmodel:\n  path: /somewhere/qwen\n"
    )
    return recipes.parent
