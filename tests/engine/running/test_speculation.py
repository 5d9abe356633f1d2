"""Answers with drafts are those without, token for token and, by our kernels, bit for bit."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bench.reference import (
    TOLERANCE,
    Recorder,
    Reference,
    compare,
    engine_options,
    greedy,
    picture,
    prompt_with_images,
)
from bench.stand_in.platforms import StandIn
from engine.core import Engine
from engine.errors import ModelUnsupported
from engine.native.loading import variants
from engine.request import Output, Request, SamplingOptions
from engine.running.flight import Draft
from engine.sampling import sampler
from engine.sampling.grammar import Grammars
from engine.scheduling import scheduler
from tests.engine.running.test_constraint import CHOICES, END, OneOf, OneOfSource
from tests.engine.running.test_oracle import VISION, words

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]
EXACT = [name for name in variants() if name != "amx"]  # which multiplies few rows otherwise
FEW = {400: 60.0, 401: 60.0, 402: 59.0}  # a bias for so few tokens that any draft may be right


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft whatever may come, however many sequences there are."""
    monkeypatch.setattr(scheduler, "READING", 1e9)


def recorder(folder: Path, speculation: str | None, **changes: object) -> Recorder:
    settings: dict[str, object] = {"pages": 300, "max_tokens_per_step": 200, "native": EXACT[0]}
    return Recorder(Engine(engine_options(folder, speculation=speculation, **settings | changes)))


def drawn(seed: int | None, **changes: object) -> SamplingOptions:
    """Random tokens, which drafts can be right about since there are few."""
    chosen: dict[str, object] = {
        "max_tokens": 40,
        "temperature": 0.8,
        "seed": seed,
        "logit_bias": FEW,
        "ignore_eos": True,
        "logprobs": 2,
    }
    return SamplingOptions(**(chosen | changes))  # type: ignore[arg-type]


def requests_for(folder: Path, family: str) -> list[Request]:
    """All that sampling knows, and prompts that repeat themselves; pictures where there are any."""
    media = []
    prompt = words(20, 1) * 2
    if family in VISION:
        again = words(6, 2)
        prompt, media = prompt_with_images(folder, [again, picture(60, 90, 1), words(5, 3), again])
    few = random.Random(3).choices(list(FEW), k=30)
    sampled = {
        "plain": drawn(1),
        "filtered": drawn(2, top_p=0.8, top_k=3, min_p=0.05),
        "penalised": drawn(3, frequency_penalty=0.2, presence_penalty=0.3, repetition_penalty=1.1),
        "least": drawn(4, min_tokens=12, stop_token_ids=frozenset({402})),
        "ended": drawn(5, stop_token_ids=frozenset({402})),
        "scored": drawn(6, prompt_logprobs=1, max_tokens=9),
        "one": drawn(7, max_tokens=1),
        "two": drawn(8, max_tokens=2),
    }
    return [
        Request("greedy", prompt, greedy(40, logprobs=3), media, n=2),
        Request("punished", prompt, greedy(40, repetition_penalty=1.05), media),
        *(Request(name, words(9, 4) + few, options, n=2) for name, options in sampled.items()),
        Request("bound", words(9, 5), ended(1), constraint=OneOfSource(), n=3),
        Request("late", prompt + words(4, 6), greedy(30), media, priority=1),
    ]


def ended(seed: int) -> SamplingOptions:
    return SamplingOptions(60, 1.5, seed=seed, stop_token_ids=frozenset({END}))


def told(recorder: Recorder) -> dict[tuple[str, int], list[Output]]:
    """All that was put out for each answer."""
    found: dict[tuple[str, int], list[Output]] = {}
    for output in recorder.outputs:
        found.setdefault((output.request_id, output.index), []).append(output)
    return found


def assert_same(plain: Recorder, drafting: Recorder) -> None:
    """The same outputs for each answer, one a token, and the same logits to the last bit."""
    assert told(plain) == told(drafting)
    for place, row in plain.rows.items():
        assert torch.equal(row, drafting.rows[place]), place


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "gemma3_text", "qwen2_vl", "llava", "gemma3"]
)
def test_answers_are_those_without_drafts_to_the_last_bit(
    family: str, dtype: str, checkpoint: Folder
) -> None:
    folder = checkpoint(family)
    plain, drafting = (recorder(folder, s, dtype=dtype) for s in (None, "ngram"))
    for each in (plain, drafting):
        each.run(*requests_for(folder, family))
    assert_same(plain, drafting)
    one, other = plain.engine.stats(), drafting.engine.stats()
    assert (one.draft_tokens, one.accepted_tokens) == (0, 0)
    assert 0 < other.accepted_tokens < other.draft_tokens
    slices = [
        sum(item.draft is None for batch in each.batches for item in batch.slices)
        for each in (plain, drafting)
    ]
    assert slices[0] - slices[1] == other.accepted_tokens
    assert (one.pages_used, other.pages_used) == (0, 0)
    assert (one.pages_cached, one.generated_tokens) == (other.pages_cached, other.generated_tokens)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_so_they_are_where_keys_are_attended_to_in_several_parts(
    family: str, threads: int, checkpoint: Folder
) -> None:
    """Parts are of 256 keys: prompts before the end of the first, of the second, and beyond."""
    folder = checkpoint(family)
    settings = {"threads": threads, "dtype": "bfloat16", "max_len": 1024}
    plain, drafting = (recorder(folder, s, **settings) for s in (None, "ngram"))
    for each in (plain, drafting):
        prompts = {"one": words(40, 7) * 6, "two": words(40, 8) * 12, "three": words(40, 9) * 16}
        each.run(*(Request(name, prompt, greedy(60)) for name, prompt in prompts.items()))
    assert_same(plain, drafting)
    assert drafting.engine.stats().accepted_tokens > 0


@pytest.mark.parametrize("native", EXACT[1:])
def test_so_they_are_by_every_variant(native: str, checkpoint: Folder) -> None:
    folder = checkpoint("llama")
    settings = {"native": native, "dtype": "bfloat16"}
    plain, drafting = (recorder(folder, s, **settings) for s in (None, "ngram"))
    for each in (plain, drafting):
        each.run(*requests_for(folder, "llama"))
    assert_same(plain, drafting)
    assert drafting.engine.stats().accepted_tokens > 0


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2_vl"])
def test_torch_says_the_same_within_rounding(
    family: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    plain, drafting = (recorder(folder, s, native="torch") for s in (None, "ngram"))
    requests = requests_for(folder, family)
    for each in (plain, drafting):
        each.run(*requests)
    assert plain.tokens == drafting.tokens
    assert drafting.engine.stats().accepted_tokens > 0
    assert compare(drafting, reference(family), requests) < TOLERANCE


def test_with_a_verifier_that_takes_every_draft_answers_differ(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the comparison notices tokens that were chosen behind a wrong one."""
    folder = checkpoint("llama")
    plain, drafting = (recorder(folder, s) for s in (None, "ngram"))
    plain.run(*requests_for(folder, "llama"))

    def always(draft: Draft) -> bool:
        return draft.sequence.finish_reason is None and draft.kept < len(draft.tokens)

    monkeypatch.setattr(Draft, "goes_on", property(always))
    requests = [each for each in requests_for(folder, "llama") if each.constraint is None]
    drafting.run(*requests)
    differing = [key for key in drafting.tokens if drafting.tokens[key] != plain.tokens[key]]
    assert len(differing) > len(drafting.tokens) / 2


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_with_too_few_pages_answers_are_the_same(family: str, checkpoint: Folder) -> None:
    folder = checkpoint(family)
    plain, drafting = (recorder(folder, s, pages=16) for s in (None, "ngram"))
    for each in (plain, drafting):
        each.run(*requests_for(folder, family))
        assert each.engine.stats().preemptions > 0
        assert each.engine.stats().pages_used == 0
    assert plain.tokens == drafting.tokens
    assert drafting.engine.stats().accepted_tokens > 0


def test_between_steps_a_sequence_holds_the_pages_of_what_it_has_computed(
    checkpoint: Folder,
) -> None:
    each = recorder(checkpoint("llama"), "ngram", page_size=2, prefix_cache=False)
    for request in requests_for(checkpoint("llama"), "llama"):
        each.engine.add(request)
    while each.engine.has_work():
        each.step()
        running = each.engine._scheduler.running
        held = {page for sequence in running for page in sequence.pages}
        assert each.engine.stats().pages_used == len(held)
        for sequence in running:
            assert len(sequence.pages) == -(-sequence.computed // 2)
            if sequence.generated:
                assert sequence.computed == len(sequence.tokens) - 1
    stats = each.engine.stats()
    assert stats.accepted_tokens < stats.draft_tokens
    assert stats.pages_used == 0


@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_what_drafts_computed_is_found_again_and_right(family: str, checkpoint: Folder) -> None:
    """Pages with kept and with rejected drafts, each read by later prompts."""
    folder = checkpoint(family)
    plain, drafting = (recorder(folder, s) for s in (None, "ngram"))
    for each in (plain, drafting):
        first = requests_for(folder, family)
        each.run(*first)
        for request in first:
            if request.constraint is None:
                tokens = request.prompt_ids + each.tokens[request.id, 0]
                again = Request(f"{request.id} again", tokens, greedy(9), request.media)
                each.run(again)
    assert_same(plain, drafting)
    hits = [each.engine.stats().prefix_hit_tokens for each in (plain, drafting)]
    assert hits[0] == hits[1] > 0


def test_no_placeholder_of_a_picture_is_drafted(checkpoint: Folder) -> None:
    folder = checkpoint("qwen2_vl")
    each = recorder(folder, "ngram")
    again = words(6, 2)
    prompt, media = prompt_with_images(folder, [again, picture(60, 90, 1), words(5, 3), again])
    placeholder = prompt[media[0].start]
    for end in range(1, 7):  # the answer may go on as the text before the picture does
        each.run(Request(f"r{end}", prompt[:-6] + again[:end], greedy(30), media))
    drafts = [s.draft for batch in each.batches for s in batch.slices if s.draft is not None]
    assert drafts
    assert placeholder not in drafts


def test_tokens_are_drawn_as_often_as_the_model_says(
    checkpoint: Folder, reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a seed, against transformers' probabilities."""
    monkeypatch.setattr(sampler.os, "urandom", random.Random(1).randbytes)
    folder, answers = checkpoint("llama"), 100
    options = drawn(None, temperature=1.0, max_tokens=12, logprobs=None)
    prompt = random.Random(3).choices(list(FEW), k=24)
    each = recorder(folder, "ngram", max_sequences=64)
    each.run(Request("r", prompt, options, n=answers))
    assert each.engine.stats().accepted_tokens > 100
    proposed = {
        (item.sequence.index, item.start): item.draft
        for batch in each.batches
        for item in batch.slices
        if item.draft is not None
    }

    def deviation(lenient: random.Random | None = None) -> float:
        """By how many sigmas drafts come more often than they should.

        A `lenient` verifier would have taken one in ten of them whatever the sampler said.
        """
        seen = spread = 0.0
        for index in range(answers):
            tokens = prompt + each.tokens["r", index]
            for place in range(len(prompt), len(tokens)):
                if lenient is not None and lenient.random() < 0.1:
                    tokens[place] = proposed.get((index, place), tokens[place])
            logits = reference("llama").logits(tokens[:-1])
            for token, bias in FEW.items():
                logits[:, token] += bias
            for place in range(len(prompt), len(tokens)):
                draft = proposed.get((index, place))
                if draft is not None:
                    chance = logits[place - 1].softmax(-1)[draft].item()
                    seen += (tokens[place] == draft) - chance
                    spread += chance * (1 - chance)
        return seen / math.sqrt(spread)

    assert abs(deviation()) < 3
    assert deviation(lenient=random.Random(2)) > 3


class Broken(OneOf):
    """A constraint that fails at its third token."""

    def mask(self, row: torch.Tensor) -> None:
        if len(self._tokens) == 2:
            raise RuntimeError("planted")
        super().mask(row)


@dataclass(frozen=True)
class BrokenSource:
    def start(self, grammars: Grammars) -> Broken:
        return Broken(((20, 21, 22, END),))


def test_what_fails_behind_a_draft_ends_one_request_only(checkpoint: Folder) -> None:
    folder = checkpoint("llama")
    each = recorder(folder, "ngram")
    prompt = [20, 21, 22, 23] * 5
    good = Request("good", words(20, 1) * 2, greedy(30))
    each.run(good, Request("bad", prompt, ended(1), constraint=BrokenSource()))
    outputs = told(each)
    assert [output.token_ids for output in outputs["bad", 0]] == [[20], [21], []]
    assert outputs["bad", 0][-1].finish_reason == "error"
    assert outputs["good", 0][-1].finish_reason == "length"
    assert each.engine.stats().pages_used == 0
    plain = recorder(folder, None)
    plain.run(good)
    assert plain.tokens["good", 0] == each.tokens["good", 0]


def test_an_answer_that_is_bound_is_drafted_for(checkpoint: Folder) -> None:
    each = recorder(checkpoint("llama"), "ngram")
    prompt = [t for choice in CHOICES for t in choice[:-1]] * 3
    each.run(Request("r", prompt, ended(1), constraint=OneOfSource(), n=8))
    assert each.engine.stats().accepted_tokens > 0
    assert all(tuple(tokens) in CHOICES for tokens in each.tokens.values())


def test_a_device_that_works_ahead_refuses(checkpoint: Folder) -> None:
    options = engine_options(checkpoint("llama"), speculation="ngram")
    with pytest.raises(ModelUnsupported, match=r"engine\.speculation=ngram needs engine=cpu"):
        Engine(options, platform=StandIn())
