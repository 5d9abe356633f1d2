"""The bench of drafts counts what was drafted and kept; answers that differ fail it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import speculation
from bench.reference import engine_options
from bench.speculation import Turn, main, questions, report, run
from engine.core import Engine
from engine.scheduling.sequence import Sequence

Folder = Callable[..., Path]
LOOP = [300, 301, 302, 303] * 6


def turn(folder: Path, **changes: object) -> Turn:
    engine = Engine(engine_options(folder, **changes))
    return run(engine, [LOOP, LOOP[1:]], 40, 0.0)


def test_a_turn_counts_tokens_steps_and_drafts(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = turn(checkpoint())

    def draft(sequence: Sequence, most: int, worthwhile: float) -> tuple[int, ...]:
        """The token that comes, and one that does not."""
        coming = plain.answers[sequence.request.id][sequence.generated]
        return (coming, coming + 1)[:most]

    monkeypatch.setattr(Sequence, "draft", draft)
    drafting = turn(checkpoint(), speculation="ngram")
    assert plain.answers == drafting.answers
    assert plain.tokens == drafting.tokens == 2 * 39
    assert (plain.drafted, plain.accepted, plain.sequence_steps) == (0, 0, 2 * 39)
    assert drafting.drafted > drafting.accepted > 0
    assert drafting.sequence_steps == drafting.tokens - drafting.accepted
    assert plain.rate == pytest.approx(plain.tokens / plain.seconds)


def run_main(checkpoint: Folder) -> int:
    told = ["--checkpoint", str(checkpoint()), "--batch", "2", "--output-tokens", "12"]
    return main([*told, "--turns", "1", "--threads", "1"])


def test_the_command_prints_a_row_for_each_kind_of_work(
    checkpoint: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(checkpoint) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [(cells[0], cells[1], cells[-1]) for cells in rows] == [
        ("quoting", "2", "yes"),
        ("chat", "2", "yes"),
    ]


def test_answers_that_drafts_change_fail_it(
    checkpoint: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(engine: Engine, asked: list[list[int]], tokens: int, temperature: float) -> Turn:
        found = run(engine, asked, tokens, temperature)
        if engine.options.speculation is not None:
            found.answers["0"][-1] += 1
        return found

    monkeypatch.setattr(speculation, "run", changed)
    assert run_main(checkpoint) == 1
    assert capsys.readouterr().out.count("NO |") == 2


def test_each_user_has_a_text_of_their_own_to_quote() -> None:
    asked = questions("quoting", 3)
    assert len(set(asked)) == 3
    assert report(1) in asked[1]
    assert report(1) == report(1) != report(2)
