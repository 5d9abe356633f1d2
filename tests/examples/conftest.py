"""Examples as a user runs them: in the project's folder, against a server of the demo model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.conftest import Server, serving

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "examples"
ADDRESS = "http://127.0.0.1:8000"  # in the examples; a test's server listens elsewhere


@pytest.fixture(scope="session")
def demo() -> Iterator[Server]:
    with serving("recipe=demo", "embeddings.serve=true", "engine.threads=1") as server:
        yield server


def run(name: str, server: Server | None, folder: Path, path: str = "") -> str:
    """What an example prints, its address replaced by the server's; `path` comes before PATH."""
    text = (EXAMPLES / name).read_text()
    if server is not None:
        assert ADDRESS in text
        text = text.replace(ADDRESS, server.base_url)
    copy = folder / name
    copy.write_text(text)
    command = ["sh", str(copy)] if name.endswith(".sh") else [sys.executable, str(copy)]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    if path:
        environment["PATH"] = f"{path}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        command,
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
