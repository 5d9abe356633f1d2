"""Our library's kernels: every variant that runs here, whole models, and what is left to torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from bench.reference import TOLERANCE, Recorder, Reference, compare, engine_options, greedy
from engine.attention.cpu import CpuAttention
from engine.attention.native import NativeAttention
from engine.core import Engine
from engine.errors import ModelUnsupported
from engine.layers.fuse import FusedDecoder
from engine.layers.native import NativeDecoder, NativeHead
from engine.native import choice
from engine.native.choice import NativeUnusable, chosen, in_words
from engine.native.loading import LibraryUnusable, variants
from engine.request import Request, SamplingOptions
from tests.engine.running.test_oracle import TEXT, VISION, requests_for, words

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]
OTHERS = variants()[1:]  # the first one is "cpu" in all other tests


@pytest.mark.parametrize("variant", OTHERS)
@pytest.mark.parametrize("family", TEXT + VISION)
def test_every_variant_agrees_with_transformers(
    variant: str, family: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    engine = Engine(engine_options(folder, native=variant, threads=2, max_tokens_per_step=96))
    assert engine._platform.machine.variant == variant  # type: ignore[attr-defined]
    recorder = Recorder(engine)
    requests = requests_for(folder, family)
    recorder.run(*requests)
    assert compare(recorder, reference(family), requests) < TOLERANCE


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_bfloat16_is_as_near_as_transformers_own(
    variant: str, family: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    exact = reference(family)
    rounded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    engine = Engine(engine_options(folder, dtype="bfloat16", native=variant))
    hold_to_rounding(engine, exact, rounded)


def hold_to_rounding(engine: Engine, exact: Reference, rounded: torch.nn.Module) -> None:
    """An engine's logits are as near to the exact ones as those of a rounded model."""
    request, recorder = Request("r", words(150, 1), greedy(4)), Recorder(engine)
    recorder.run(request)
    tokens = request.prompt_ids + recorder.tokens["r", 0][:-1]
    with torch.no_grad():
        theirs = rounded(torch.tensor([tokens])).logits[0].float()
    expected = exact.logits(tokens)
    rows = sorted(place for _, _, place in recorder.rows)
    ours = torch.stack([recorder.rows["r", 0, row] for row in rows])
    allowed = (theirs - expected).abs().max()  # what bfloat16 costs them, over all rows
    assert (ours - expected[rows]).abs().max() < allowed
    assert (ours - expected[[row - 1 for row in rows]]).abs().max() > 3 * allowed  # another token's


def test_a_row_is_the_same_whatever_runs_beside_it(checkpoint: Folder) -> None:
    """To the last bit: sums are in the order of inputs and of keys, by position.

    Not so by amx, which multiplies few rows otherwise than many.
    """
    hold_to_the_last_bit(checkpoint("qwen3"), neighbours=(0, 5, 11))


def hold_to_the_last_bit(folder: Path, neighbours: tuple[int, ...], **changes: object) -> None:
    """A request's logits beside so many others, by as many threads as there were tries."""
    variant = next(name for name in variants() if name != "amx")
    request = Request("r", words(70, 1), greedy(8))
    rows = []
    for threads, others in enumerate(neighbours, 1):
        told = {"native": variant, "threads": threads, "max_tokens_per_step": 512, **changes}
        recorder = Recorder(Engine(engine_options(folder, **told)))
        beside = [Request(f"o{i}", words(3 + 20 * i, i), greedy(8)) for i in range(others)]
        recorder.run(request, *beside)
        rows.append({place: row for place, row in recorder.rows.items() if place[0] == "r"})
    for place, row in rows[0].items():
        for other in rows[1:]:
            assert torch.equal(row, other[place])
    first, second = list(rows[0].values())[:2]
    assert not torch.equal(first, second)


ASKS_FOR_LOGITS = {
    "a temperature": {"temperature": 0.5},
    "log-probabilities": {"logprobs": 0},
    "those of the prompt": {"prompt_logprobs": 0},
    "a penalty": {"repetition_penalty": 1.3},
    "a bias": {"logit_bias": {7: 100.0}},
    "a least number of tokens": {"min_tokens": 5},
}


@pytest.mark.parametrize("asked", [None, *ASKS_FOR_LOGITS])
def test_a_greedy_choice_takes_no_logits_where_nobody_asks_for_them(
    asked: str | None, checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are tokens others for it: beside what asks for them they are chosen out of all."""
    calls: list[int] = []
    multiply = NativeHead.__call__

    def counted(head: NativeHead, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return multiply(head, x)

    monkeypatch.setattr(NativeHead, "__call__", counted)
    options = engine_options(checkpoint("qwen3"), threads=2, max_tokens_per_step=64)
    requests = [Request(f"r{n}", words(20 * n, n), greedy(6)) for n in (1, 2, 4)]
    if asked is not None:
        told = {"temperature": 0.0, "max_tokens": 6, **ASKS_FOR_LOGITS[asked]}
        requests.append(Request("asks", words(9, 9), SamplingOptions(**told)))
    found = tokens_of(Engine(options), requests)
    assert bool(calls) == (asked is not None)
    monkeypatch.setattr("engine.running.launcher.takes_likeliest", lambda sequence: False)
    again = tokens_of(Engine(options), requests)
    assert len(calls) > 0
    for request in requests[:3]:
        assert found[request.id] == again[request.id]
    assert len(set(map(tuple, found.values()))) == len(requests)


def tokens_of(engine: Engine, requests: list[Request]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work():
        for output in engine.step():
            found[output.request_id] += output.token_ids
    return found


def test_what_is_not_for_it_is_torchs(
    checkpoint: Folder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("llama")
    with caplog.at_level(logging.INFO):
        for changes, reason in (
            ({"dtype": "float16"}, "there are no kernels of float16"),
            ({"fuse": False}, "they are not fused"),
        ):
            engine = Engine(engine_options(folder, **changes))
            assert isinstance(engine._runner._backend, CpuAttention)
            assert f"torch's operators compute the layers: {reason}" in caplog.messages[-1]
    with pytest.raises(ModelUnsupported, match="no kernels of float16: set it to auto"):
        Engine(engine_options(folder, dtype="float16", native=variants()[0]))
    engine = Engine(engine_options(folder, native="torch"))
    assert isinstance(engine._runner._decoder, FusedDecoder)
    engine = Engine(engine_options(folder))
    assert isinstance(engine._runner._decoder, NativeDecoder)
    assert isinstance(engine._runner._backend, NativeAttention)
    assert torch.get_num_threads() == 1


def test_a_machine_without_the_library_runs_by_torch_and_says_so(
    checkpoint: Folder,
    reference: Model,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> list[str]:
        raise LibraryUnusable("libappliance.so was not built when this was installed: build it")

    monkeypatch.setattr(choice, "variants", missing)
    options = engine_options(checkpoint("llama"), dtype="float32")
    recorder = Recorder(Engine(options))
    request = Request("r", words(20, 1), greedy(3))
    recorder.run(request)
    assert isinstance(recorder.engine._runner._decoder, FusedDecoder)
    assert compare(recorder, reference("llama"), [request]) < TOLERANCE
    said = "engine.native=auto: libappliance.so was not built when this was installed: build it"
    assert f"torch's operators compute the layers, slower: {said}" in caplog.messages
    assert in_words(options) == f"torch's operators ({said})"
    with pytest.raises(NativeUnusable, match="was not built"):
        Engine(replace(options, native="avx2"))


def test_threads_that_the_system_refuses_leave_the_layers_to_torch(
    checkpoint: Folder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(variant: str, threads: int) -> None:
        raise LibraryUnusable(f"{variant} does not run here, or its threads are refused")

    monkeypatch.setattr("engine.running.cpu_platform.Machine", refused)
    options = engine_options(checkpoint("llama"))
    with caplog.at_level(logging.INFO):
        assert isinstance(Engine(options)._runner._decoder, FusedDecoder)
    assert "or its threads are refused" in caplog.messages[-1]
    with pytest.raises(ModelUnsupported, match="or its threads are refused: set it to auto"):
        Engine(replace(options, native=variants()[0]))


def test_the_settings_tell_whose_kernels_compute(checkpoint: Folder) -> None:
    options = engine_options(checkpoint("llama"))
    fastest = variants()[0]
    assert in_words(options) == f"our kernels for {fastest}"
    assert chosen("auto") == fastest
    assert chosen("torch") is None
    for changes in ({"native": "torch"}, {"dtype": "float16"}, {"fuse": False}):
        assert in_words(replace(options, **changes)) == "torch's operators"  # type: ignore[arg-type]
    with pytest.raises(NativeUnusable, match=f"this processor has .*{fastest}.*set it to torch"):
        chosen("vax")
