"""A thought has so many tokens and is then ended, on every path, beside answers that think on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.reference import Recorder, greedy
from bench.stand_in.platforms import PATHS, engine_on
from engine.request import Request, SamplingOptions
from engine.sampling.thought_budget import ThoughtBudget
from tests.engine.running.test_constraint import CHOICES, OneOfSource, ended
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]
# The ends are at both ends of a word of the mask, and the last token of none.
BEGIN, END = 40, (31, 63, 64)


@pytest.mark.parametrize("path", PATHS)
def test_a_thought_ends_where_its_budget_does(checkpoint: Folder, path: str) -> None:
    recorder = Recorder(engine_on(path, checkpoint("llama")))
    free = Request("free", words(12, 1), greedy(20))
    budgets = [
        Request(
            f"{tokens} {end}",
            words(12, 1),
            SamplingOptions(20, 1.5, seed=tokens),
            constraint=ThoughtBudget(tokens, BEGIN, end, begun=True),
        )
        for tokens in (0, 1, 7)
        for end in END
    ]
    recorder.run(free, *budgets)
    for request in budgets:
        tokens, end = map(int, request.id.split())
        answer = recorder.tokens[request.id, 0]
        assert answer.index(end) <= tokens
        assert len(answer) == 20, "and it goes on"
    assert not set(END) & set(recorder.tokens["free", 0][:1])


def test_what_comes_behind_is_still_held_to_its_form(checkpoint: Folder) -> None:
    recorder = Recorder(engine_on("cpu", checkpoint("llama")))
    form = OneOfSource(tuple((*range(80, 90), 31, *choice) for choice in CHOICES))
    budget = ThoughtBudget(10, BEGIN, 31, begun=True, then=form)
    recorder.run(Request("r", words(12, 1), ended(3), constraint=budget))
    assert tuple(recorder.tokens["r", 0]) in form.choices


@pytest.mark.parametrize("begun", [True, False])
def test_a_thought_that_the_answer_begins_is_counted_from_there(begun: bool) -> None:
    import torch

    from engine.sampling.constraint import mask_words

    constraint = ThoughtBudget(2, BEGIN, 64, begun=begun).start(None)  # type: ignore[arg-type]

    def allowed() -> int:
        row = torch.zeros(mask_words(96), dtype=torch.int32)
        constraint.mask(row)
        return sum((int(word) & 0xFFFFFFFF).bit_count() for word in row)

    for token in (5, 6):
        assert allowed() == 96
        constraint.advance(token)
    assert allowed() == (1 if begun else 96)
    if not begun:
        for token in (BEGIN, 5, 6):
            assert allowed() == 96
            constraint.advance(token)
        assert allowed() == 1
    constraint.advance(64)
    assert allowed() == 96
