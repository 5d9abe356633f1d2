"""What is stored of the exam is what was drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.exam.questions import DRAWN, stored
from tools.demo import store_exam


@pytest.mark.usefixtures("one_font")
def test_questions_are_read_as_they_were_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of-before-1.png").write_bytes(b"")
    monkeypatch.setattr(store_exam, "SKILLS", ["look", "number", "images", "direction", "talk"])
    monkeypatch.setattr(store_exam, "EACH", 2)
    drawn = store_exam.drawn()
    store_exam.store(drawn, tmp_path)
    assert stored([tmp_path]) == drawn
    assert Counter(asked.skill for asked in drawn) == dict.fromkeys(store_exam.SKILLS, 2)
    assert not (tmp_path / "of-before-1.png").exists()
    assert {file.suffix for file in tmp_path.iterdir()} >= {".png", ".mp4", ".json"}


def test_a_checkout_carries_as_many_of_every_skill_and_small_ones() -> None:
    found = stored([DRAWN])
    counts = Counter(asked.skill for asked in found)
    assert counts == dict.fromkeys(store_exam.SKILLS, store_exam.EACH)
    for asked in found:
        assert sum(len(item.data) for item in asked.items) <= store_exam.LARGEST
