"""Answers under a constraint: on every path, beside others, drawn or greedy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from bench.reference import Recorder, engine_options, greedy
from bench.stand_in.platforms import PATHS, engine_on
from engine.request import Request, SamplingOptions
from engine.sampling.constraint import WORD, mask_words
from engine.sampling.grammar import Grammars
from engine.scheduling.sequence import Sequence
from tests.engine.running.test_oracle import words

Folder = Callable[[str], Path]
END = 1
CHOICES = ((20, 21, 22, END), (20, 31, END), (41, 42, 43, 44, 45, END))


class OneOf:
    """An answer that is one of several lists of tokens."""

    def __init__(self, choices: tuple[tuple[int, ...], ...]) -> None:
        self._choices = choices
        self._tokens: list[int] = []

    ready = True
    group = None

    @property
    def complete(self) -> bool:
        return self._following() <= {END}

    def mask(self, row: torch.Tensor) -> None:
        assert not row.any()
        for token in self._following():
            row[token // WORD] |= torch.tensor(1 << token % WORD).to(torch.int32)

    def advance(self, token: int) -> None:
        assert token in self._following(), "a token came that the mask forbade"
        self._tokens.append(token)

    def _following(self) -> set[int]:
        place = len(self._tokens)
        return {c[place] for c in self._choices if list(c[:place]) == self._tokens}


@dataclass(frozen=True)
class OneOfSource:
    choices: tuple[tuple[int, ...], ...] = field(default=CHOICES)

    def start(self, grammars: Grammars) -> OneOf:
        return OneOf(self.choices)


def ended(seed: int | None = None) -> SamplingOptions:
    """Greedy, or drawn with a seed; at most 60 tokens, fewer if the end comes."""
    temperature = 0.0 if seed is None else 1.5
    return SamplingOptions(60, temperature, seed=seed, stop_token_ids=frozenset({END}))


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_one_of_the_choices_and_others_are_as_alone(
    checkpoint: Folder, path: str
) -> None:
    folder = checkpoint("llama")
    free = [Request(f"free {n}", words(10 + n, n), greedy(9)) for n in range(3)]
    recorder = Recorder(engine_on(path, folder))
    recorder.run(*free)
    alone = dict(recorder.tokens)
    recorder.tokens.clear()
    bound = [
        Request(f"drawn {n}", words(10 + n, n), ended(n), n=3, constraint=OneOfSource())
        for n in range(6)
    ]
    bound.append(Request("greedy", words(30, 9), ended(), constraint=OneOfSource()))
    recorder.run(*free, *bound)
    assert {key: recorder.tokens[key] for key in alone} == alone
    answers = {tuple(t) for key, t in recorder.tokens.items() if not key[0].startswith("free")}
    assert answers <= set(CHOICES)
    assert len(answers) == len(CHOICES)  # by 19 draws: none is favoured out of sight
    assert recorder.engine.stats().pages_used == 0


def test_a_constraint_survives_preemption(checkpoint: Folder) -> None:
    recorder = Recorder(engine_on("cuda", checkpoint("llama"), pages=12))
    many = OneOfSource(tuple((*range(10, 10 + n), END) for n in (40, 50)))
    for number in range(4):
        request = Request(f"r{number}", words(20, number), ended(number), constraint=many)
        recorder.engine.add(request)
    recorder.finish()
    assert recorder.engine.stats().preemptions > 0
    assert all(tuple(tokens) in many.choices for tokens in recorder.tokens.values())


@pytest.mark.parametrize("path", ["cuda", "cuda graphs"])
def test_without_waiting_for_its_own_token_a_mask_would_be_stale(
    checkpoint: Folder, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: where steps overlap, the rule is what keeps the tests above green."""
    monkeypatch.setattr(Sequence, "awaits_token", False)
    recorder = Recorder(engine_on(path, checkpoint("llama")))
    with pytest.raises(AssertionError, match="the mask forbade"):
        recorder.run(Request("r", words(10, 1), ended(), constraint=OneOfSource()))


def test_masks_reach_the_last_token_of_a_vocabulary_that_fills_no_word() -> None:
    from engine.sampling.masks import Masks, constrained, unpacked
    from tests.engine.sampling.test_sampler import sequence

    vocabulary = 70
    bound, free = sequence(greedy(1)), sequence(greedy(1))
    bound.constraint = OneOf(((31,), (32,), (69,)))
    logits = torch.randn(2, vocabulary)
    before = logits.clone()
    taken = Masks(vocabulary).take([bound, free])
    assert taken is not None
    allowed = unpacked(taken, vocabulary)
    found = constrained(logits, [bound, free], allowed, lambda tensor: tensor)
    alone = constrained(logits[:1], [bound], allowed, lambda tensor: tensor)
    assert torch.equal(found[:1], alone)
    assert mask_words(vocabulary) == 3
    assert found[0].isfinite().nonzero().flatten().tolist() == [31, 32, 69]
    assert torch.equal(found[0, [31, 32, 69]], before[0, [31, 32, 69]])
    assert torch.equal(found[1], before[1])
    assert torch.equal(logits, before)
    assert Masks(vocabulary).take([free, free]) is None


def test_a_constraint_goes_through_the_pipe_with_its_request(checkpoint: Folder) -> None:
    import asyncio

    from engine.process.client import EngineClient

    async def scenario() -> list[int]:
        client = EngineClient(engine_options(checkpoint("llama")))
        await client.start()
        request = Request("r", words(10, 1), ended(), constraint=OneOfSource())
        tokens = [t async for output in client.submit(request) for t in output.token_ids]
        await client.stop()
        return tokens

    assert tuple(asyncio.run(scenario())) in CHOICES


def test_masks_are_computed_beside_the_step_and_for_those_that_were_expected() -> None:
    from engine.sampling.masks import Masks
    from tests.engine.sampling.test_sampler import sequence

    begun, go_on = threading.Event(), threading.Event()

    class Slow(OneOf):
        def mask(self, row: torch.Tensor) -> None:
            begun.set()
            assert go_on.wait(60)
            super().mask(row)

    first, second, free = (sequence(greedy(1)) for _ in range(3))
    first.constraint, second.constraint = Slow(((3,),)), OneOf(((5,),))
    masks = Masks(70)
    masks.expect([free, first])
    assert begun.wait(60)  # while this thread computes the step
    go_on.set()
    taken = masks.take([first, free])
    assert taken is not None
    assert taken.tolist() == [[1 << 3, 0, 0]]
    masks.expect([first])
    others = masks.take([second, free])  # not those: drafts that are followed
    assert others is not None
    assert others.tolist() == [[1 << 5, 0, 0]]
    masks.expect([first])
    assert masks.take([free]) is None
