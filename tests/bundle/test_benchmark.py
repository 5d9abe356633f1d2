"""The benchmark that a bundle carries has what it reads, and nothing that it wrote."""

from __future__ import annotations

import zipfile
from pathlib import Path

from bench.exam.questions import DRAWN, FOREIGN, TABLE
from tools.bundle.__main__ import CHECKOUT, benchmark


def test_it_has_the_exam_and_no_results(tmp_path: Path) -> None:
    with zipfile.ZipFile(benchmark(tmp_path / "bench.zip")) as made:
        names = set(made.namelist())
        table = made.read(f"bench/exam/drawn/{TABLE}")
    assert table == (DRAWN / TABLE).read_bytes()
    files = {*(CHECKOUT / "bench").rglob("*.py"), *DRAWN.iterdir(), *FOREIGN.iterdir()}
    assert {str(file.relative_to(CHECKOUT)) for file in files} <= names
    assert "bench/gpu.py" in names
    assert any((CHECKOUT / "bench" / "results").iterdir())
    assert not [name for name in names if "results" in name or "__pycache__" in name]
