"""A process of the engine imports what it takes, and nothing that merely is installed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.reference import engine_options
from engine.process.client import EngineClient
from engine.process.imports import UNUSED
from tests.conftest import CHECKOUT

Folder = Callable[[str], Path]
FAMILIES = ("llama", "qwen2_vl", "llava", "gemma3", "ultravox")
BROUGHT = """
import contextlib, gc, json, sys
from engine.models.registry import family_for
from engine.process.imports import UNUSED, bring, sparing
with sparing() if sys.argv[1] == "sparing" else contextlib.nullcontext():
    for folder in sys.argv[2:]:
        bring(folder)
found = sorted(set(UNUSED) & sys.modules.keys())
compiler = sorted({"sympy", "torch._dynamo.utils", "torch.distributed.tensor"} & sys.modules.keys())
classes = [family_for(folder).model_class().__name__ for folder in sys.argv[2:]]
import numpy as np
heard = family_for(sys.argv[-1]).preprocess_audio(np.zeros(16_000, np.float32))
print(json.dumps({
    "found": found, "compiler": compiler, "classes": classes, "heard": list(heard),
    "librosa": "librosa" in sys.modules,
    "collects": gc.isenabled(), "frozen": gc.get_freeze_count(),
}))
"""


COMPILED = """
import sys
from pathlib import Path
from engine.process.imports import bring, sparing
with sparing():
    bring(sys.argv[1])
import torch
from bench.reference import engine_options
from engine.core import Engine
Engine(engine_options(Path(sys.argv[1])))
marked = torch.compiler.disable(recursive=False)(len)
brought = {"torch._dynamo.utils", "sympy"} & sys.modules.keys()
compiled = torch.compile(torch.add, backend="eager")
print(marked is len, len(brought), compiled(torch.ones(2), 1).tolist())
"""
WITHIN = """
import asyncio, gc, sys
from bench.reference import engine_options
from engine.process.client import EngineClient
async def main():
    client = EngineClient(engine_options(sys.argv[1]), in_process=True)
    await client.start()
    await client.stop()
asyncio.run(main())
import scipy
print(gc.get_freeze_count(), gc.isenabled(), None in sys.modules.values())
"""


def brought(way: str, folders: list[Path]) -> dict[str, Any]:
    command = [sys.executable, "-c", BROUGHT, way, *map(str, folders)]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)  # type: ignore[no-any-return]


def test_models_come_without_what_they_do_not_need(checkpoint: Folder) -> None:
    folders = [checkpoint(family) for family in FAMILIES]
    spared, usual = brought("sparing", folders), brought("as usual", folders)
    assert spared["found"] == []
    assert "scipy" in usual["found"]  # which a loss of transformers imports where it is installed
    assert spared["classes"] == usual["classes"]
    assert len(set(spared["classes"])) == len(FAMILIES)
    assert spared["compiler"] == []
    assert len(usual["compiler"]) == 3  # which transformers imports for marks on its functions


def test_what_was_kept_away_is_there_for_whoever_needs_it(checkpoint: Folder) -> None:
    found = brought("sparing", [checkpoint("ultravox")])
    assert found["heard"]
    assert found["librosa"]
    assert found["collects"]
    assert found["frozen"] > 100_000


def test_the_compiler_comes_when_it_is_called_and_not_for_a_model(
    checkpoint: Folder,
) -> None:
    command = [sys.executable, "-c", COMPILED, str(checkpoint("llama"))]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split(maxsplit=2) == ["True", "0", "[2.0, 2.0]\n"]


def packages(maps: str) -> set[str]:
    """Those of which a process has compiled modules, by /proc/PID/maps."""
    lines = [line.partition("/site-packages/")[2] for line in maps.splitlines() if ".so" in line]
    return {line.split("/")[0] for line in lines if line}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells it")
def test_a_start_has_nothing_of_it_in_its_process(checkpoint: Folder) -> None:
    folder = checkpoint("llama")

    async def scenario() -> str:
        client = EngineClient(engine_options(folder))
        await client.start()
        maps = Path(f"/proc/{client.pid}/maps").read_text()
        await client.stop()
        return maps

    found = packages(asyncio.run(scenario()))
    assert {"torch", "numpy"} <= found
    assert not found & set(UNUSED)
    told = "import scipy.linalg; print(open('/proc/self/maps').read())"
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert "scipy" in packages(ran.stdout)


def test_an_engine_in_the_process_of_a_script_leaves_it_as_it_is(checkpoint: Folder) -> None:
    command = [sys.executable, "-c", WITHIN, str(checkpoint("llama"))]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["0", "True", "False"]
