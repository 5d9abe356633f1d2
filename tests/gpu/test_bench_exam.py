"""The exam that a served demo is given: enough of it, each question with what it is about."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.exam.questions import BACKGROUNDS, DRAWN, FOREIGN, Question, laid, stored
from bench.gpu_calls import astray, of_exam
from bench.gpu_models import TINY
from bench.gpu_serve import Serving


def test_a_hundred_questions_and_more_are_stored_of_every_skill() -> None:
    questions = stored()
    assert len(questions) >= 100
    counts = Counter(asked.skill for asked in questions)
    assert {"look", "count", "place", "compare", "number", "word", "transparent", "images"} < set(
        counts
    )
    assert {"direction", "first colour", "distinct colours", "no image", "talk"} < set(counts)
    for folder in (FOREIGN, DRAWN):
        table = json.loads((folder / "questions.json").read_text())
        shown = {name for asked in table for name in asked["files"]}
        assert shown | {"questions.json"} == {file.name for file in folder.iterdir()}


def test_pictures_lie_on_the_background_that_they_are_asked_about() -> None:
    for asked in stored():
        if asked.background is None:
            continue
        for item in asked.items:
            behind = BACKGROUNDS[asked.background]
            with Image.open(io.BytesIO(item.data)) as picture:
                expected = Image.new("RGBA", picture.size, (*behind, 255))
                expected.alpha_composite(picture.convert("RGBA"))
            with Image.open(io.BytesIO(laid(item, asked.background).data)) as found:
                assert found.mode == "RGB"
                assert found.tobytes() == expected.convert("RGB").tobytes()
                corner = found.getpixel((0, 0))
            assert corner == behind


def content(body: bytes) -> list[dict[str, Any]]:
    (message,) = json.loads(body)["messages"]
    return message["content"]  # type: ignore[no-any-return]


def pictures(parts: list[dict[str, Any]]) -> list[bytes]:
    urls = [part[part["type"]]["url"] for part in parts if part["type"] != "text"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def test_what_a_server_composites_itself_is_sent_as_it_is() -> None:
    questions = stored()
    sent = [pictures(content(call.body)) for call in of_exam(questions)]
    as_they_are = [[item.data for item in asked.items] for asked in questions]
    for asked, found, files in zip(questions, sent, as_they_are, strict=True):
        assert (found == files) is (asked.background in (None, "white"))
    assert [content(call.body)[-1]["text"] for call in of_exam(questions)] == [
        asked.text for asked in questions
    ]


def test_gone_astray_no_question_has_its_own_pictures() -> None:
    shown = [asked for asked in stored() if asked.items]
    wrong = astray(stored())
    assert [(asked.text, asked.answer) for asked in wrong] == [(q.text, q.answer) for q in shown]
    assert all(asked.items != own.items for asked, own in zip(wrong, shown, strict=True))
    assert sorted(map(shows, wrong)) == sorted(map(shows, shown))


def shows(asked: Question) -> list[bytes]:
    return [item.data for item in asked.items]


class Counted(Serving):
    """Answers that were counted before: of the exam, then with wrong pictures."""

    def __init__(self, folder: Path, *counts: int) -> None:
        super().__init__("cpu", folder, 1, TINY)
        self._counts = list(counts)

    def _right(self, server: object, questions: Sequence[Question]) -> int:
        return self._counts.pop(0)


@pytest.mark.parametrize(
    ("right", "wrong", "passed"),
    [
        (106, 18, [True, True]),
        (100, 18, [True, True]),  # bfloat16 may turn a few
        (99, 18, [False, True]),
        (18, 18, [False, True]),  # as with wrong pictures
        (106, 53, [True, False]),  # pictures that do not matter
    ],
)
def test_the_exam_is_passed_as_on_the_cpu_and_by_its_pictures(
    right: int, wrong: int, passed: list[bool], tmp_path: Path
) -> None:
    rows = list(Counted(tmp_path, right, wrong)._exam_rows(None, 106))  # type: ignore[arg-type]
    assert [row.passed for row in rows] == passed
    assert rows[0].found == f"{right} of {len(stored())} right, on the CPU 106"
