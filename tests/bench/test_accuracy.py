"""What fewer bits cost is counted against the weights as they are, and the right answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import accuracy
from bench.accuracy import PROMPT, Found, examined, main, measure, pieces_of, row, same_before
from bench.exam.questions import Question
from bench.reference import Reference, engine_options

Folder = Callable[..., Path]
ANSWERED = 8


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "page.md"
    words = ("the quick brown fox jumps over a lazy dog", "and then it sleeps in the sun again")
    file.write_text("\n".join(words[n % 2] + f" {n}." for n in range(60)))
    return file


def found(folder: Path, text: Path, **changes: object) -> Found:
    pieces = pieces_of([text], folder, 48, 3)
    return measure(engine_options(folder, pages=0, **changes), pieces, ANSWERED)


def test_a_piece_is_scored_as_transformers_scores_it(checkpoint: Folder, text: Path) -> None:
    folder = checkpoint()
    pieces = pieces_of([text], folder, 48, 3)
    assert [len(piece) for piece in pieces] == [48] * 3
    made, reference = found(folder, text), Reference(folder)
    scores, likeliest = [], []
    for piece in pieces:
        logits = reference.logits(piece)[:-1]
        chosen = torch.tensor(piece[1:])[:, None]
        scores += logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        likeliest += logits.argmax(-1).tolist()
    assert made.logprobs == pytest.approx(scores, abs=1e-3)
    assert made.likeliest == likeliest
    assert made.answers == [reference.generate(each[:PROMPT], ANSWERED) for each in pieces]


def test_a_model_is_the_same_as_itself_and_another_is_not(checkpoint: Folder, text: Path) -> None:
    whole = found(checkpoint(), text)
    itself, other = (row("r", each, whole) for each in (whole, found(checkpoint(1), text)))
    assert (itself.likeliest, itself.before, itself.equal, itself.answers) == (1, 1, 3, 3)
    assert itself.perplexity == pytest.approx(math.exp(-sum(whole.logprobs) / len(whole.logprobs)))
    assert other.likeliest < 0.5
    assert other.before < 0.5
    assert other.equal == 0


def test_a_row_counts_what_is_the_same() -> None:
    whole = Found(100, [-1.0] * 4, [1, 2, 3, 4], [[5, 6, 7], [8, 9, 9]])
    bent = replace(whole, weights_bytes=50, likeliest=[1, 2, 0, 4], answers=[[5, 0, 7], [8, 9, 9]])
    assert row("int8", bent, whole) == accuracy.Row("int8", 50, math.e, 0.75, 4 / 6, 1, 2)
    assert (same_before([1, 2], [1, 2]), same_before([1, 2], [3, 2])) == (2, 0)


def test_the_command_prints_a_row_for_each(
    checkpoint: Folder, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--checkpoint", str(checkpoint()), "--text", str(text), "--pieces", "2"]
    assert main([*told, "--length", "40", "--answers", "4", "--threads", "1"]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    names = [cells[0].strip("| ") for cells in lines if len(cells) == 6]
    assert names[-3:] == ["float32", "int8", "int4"]
    whole, *fewer = (cells for cells in lines[-3:])
    assert whole[3:] == ["100.0 %", "100.0 %", "2 of 2 |"]
    assert all(cells[1:3] != whole[1:3] for cells in fewer)


QUESTIONS = [Question("look", (), f"What is {n}?", f"It is {n}.") for n in range(4)]


def test_an_exam_counts_right_answers_and_which_were_right_before() -> None:
    said = {
        "as they are": ["It is 0.", "It is 1.", "No.", "No."],
        "int4": ["It is 0.", "No.", "It is 2.", "No."],
    }
    *_, whole, fewer = examined(QUESTIONS, said).splitlines()
    assert whole == "| as they are | 2 of 4 | 2 of 2 | 0 | 4 |"
    assert fewer == "| int4 | 2 of 4 | 1 of 2 | 1 | 2 |"


def test_the_exam_is_given_to_a_server_of_each_kind_of_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def answers(questions: list[Question], log: Path, *overrides: str) -> list[str]:
        told.extend(overrides)
        return [asked.answer for asked in questions]

    monkeypatch.setattr(accuracy, "stored", lambda: QUESTIONS)
    monkeypatch.setattr(accuracy, "answers", answers)
    assert main(["--exam", "--quantization", "int8"]) == 0
    assert told == ["model.quantization=null", "model.quantization=int8"]
    assert "| int8 | 4 of 4 | 4 of 4 | 0 | 4 |" in capsys.readouterr().out
