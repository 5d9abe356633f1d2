"""The benchmark of vectors measures all sides, and says how much they agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import embeddings
from tests.checkpoints import write_bert


def test_sides_are_measured_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_bert(tmp_path / "bert")
    told = ["--checkpoint", str(folder), "--texts", "6", "--rounds", "1"]
    assert embeddings.main(told) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: row for row in rows if len(row) == 6}
    assert {"appliance, over HTTP", "transformers, padded"} <= found.keys()
    assert float(found["appliance, over HTTP"][-1]) > 0.9999
