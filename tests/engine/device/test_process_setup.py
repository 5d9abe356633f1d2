"""What a process of the engine gives back once its model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.device.process_setup import SMAPS
from tests.conftest import CHECKOUT

SIZE = 1 << 20
KEPT = """
import json, mmap, re, sys
from pathlib import Path
from engine.device.process_setup import keep_memory
maps = []
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        maps.append(mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE))
maps[1][:3] = b"new"
read = [one[:] for one in maps]
def resident():
    sections = re.split("(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    of = {path: section for section in sections for path in sys.argv[1:] if path in section}
    return [int(re.search(r"Rss: +([0-9]+)", of[path])[1]) for path in sys.argv[1:]]
before = resident()
keep_memory()
print(json.dumps([before, resident(), read == [one[:] for one in maps]]))
"""


@pytest.mark.skipif(not SMAPS.exists(), reason="Linux tells it")
def test_weights_that_were_read_are_not_kept_twice(tmp_path: Path) -> None:
    names = ("read.safetensors", "written.safetensors", "read.json")
    for name in names:
        (tmp_path / name).write_bytes(b"a" * SIZE)
    command = [sys.executable, "-c", KEPT, *(str(tmp_path / name) for name in names)]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    before, after, same = json.loads(ran.stdout)
    assert before == [SIZE >> 10] * 3
    assert after == [0, SIZE >> 10, SIZE >> 10]
    assert same
