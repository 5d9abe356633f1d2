"""Whisper's decoder attends to sounds as transformers' does, whatever is batched or cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.generation_whisper import _median_filter

from bench.reference import TOLERANCE, Recorder, Reference, compare, engine_options, greedy
from bench.stand_in.platforms import engine_on
from engine.core import Engine
from engine.errors import ModelUnsupported, RequestRefused
from engine.models.item_tensors import tensors_of
from engine.models.whisper import Whisper
from engine.request import Alignment, MediaItem, Request
from tests.engine.models.sounds import Samples, digest, sound

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]
PATHS = ["cpu", "cuda"]
WINDOW = 32_000  # samples of the tiny one


def words(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(300, 500), k=count)


def heard(folder: Path, samples: Samples, start: int = 0) -> MediaItem:
    family = Whisper(folder)
    tensors = tensors_of(family.preprocess_audio(samples))
    return MediaItem("audio", digest(samples), start, 0, tensors, family.states)


def requests_for(folder: Path, count: int = 5, tokens: int = 8, n: int = 1) -> list[Request]:
    lengths = [1, 5, 33, 60, 3][:count]
    return [
        Request(
            f"r{i}",
            words(length, i),
            greedy(tokens),
            [heard(folder, sound(4_000 + 5_000 * i, i))],
            n=n,
        )
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("samples", [100, 31_999, 32_000, 32_001, 40_041, 99_999])
def test_features_are_those_of_whispers_extractor(samples: int, checkpoint: Folder) -> None:
    """Sounds of a window at most end in silence; longer ones are heard as long as they are."""
    folder = checkpoint("whisper")
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    waves = sound(samples, samples)
    long = samples > WINDOW
    theirs = extractor(
        [waves],
        sampling_rate=16_000,
        truncation=not long,
        padding="longest" if long else "max_length",
        return_tensors="pt",
    ).input_features[0]
    ours = torch.from_numpy(Whisper(folder).preprocess_audio(waves)["features"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)


@pytest.mark.parametrize("path", PATHS)
def test_a_packed_batch_of_several_sounds_agrees_with_transformers(
    path: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint("whisper")
    recorder = Recorder(engine_on(path, folder, max_tokens_per_step=512))
    requests = requests_for(folder)
    recorder.run(*requests)
    assert max(len(batch.slices) for batch in recorder.batches) == len(requests)
    assert compare(recorder, reference("whisper"), requests) < TOLERANCE
    # control: with each other's sounds they do not
    swapped = [replace(one, media=other.media) for one, other in pairwise(requests)]
    assert compare(recorder, reference("whisper"), swapped) > 100 * TOLERANCE


@pytest.mark.parametrize("path", PATHS)
def test_prompts_computed_in_chunks_attend_to_what_was_stored_once(
    path: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint("whisper")
    engine = engine_on(path, folder, max_tokens_per_step=7)
    recorder = Recorder(engine)
    requests = requests_for(folder)
    recorder.run(*requests)
    assert compare(recorder, reference("whisper"), requests) < TOLERANCE
    assert len(engine.encodes()) == len(requests)


@pytest.mark.parametrize("path", PATHS)
def test_a_preempted_sequence_has_its_states_computed_again(
    path: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint("whisper")
    engine = engine_on(
        path, folder, pages=9, state_pages=3, max_tokens_per_step=512, prefix_cache=False
    )
    recorder = Recorder(engine)
    requests = requests_for(folder, count=4, tokens=40)
    recorder.run(*requests)
    assert engine.stats().preemptions > 0
    assert engine.stats().pages_used == engine._states.pool.used == 0
    assert compare(recorder, reference("whisper"), requests) < TOLERANCE


def test_who_finds_no_pages_for_states_waits(checkpoint: Folder, reference: Model) -> None:
    folder = checkpoint("whisper")
    engine = Engine(engine_options(folder, state_pages=2))
    recorder = Recorder(engine)
    requests = requests_for(folder)
    recorder.run(*requests)
    assert max(len(batch.slices) for batch in recorder.batches) == 2
    assert engine.stats().preemptions == 0
    assert engine._states.pool.used == 0
    assert compare(recorder, reference("whisper"), requests) < TOLERANCE


@pytest.mark.parametrize("path", PATHS)
def test_prefixes_are_found_for_the_same_sound_alone(
    path: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint("whisper")
    engine = engine_on(path, folder)
    recorder = Recorder(engine)
    prompt, sounds = words(40, 1), [heard(folder, sound(20_000, seed)) for seed in (1, 2)]
    requests = [
        Request(name, prompt, greedy(4), [item])
        for name, item in (("first", sounds[0]), ("again", sounds[0]), ("other", sounds[1]))
    ]
    for request in requests:
        recorder.run(request)
    hits = {output.request_id: output.cached_tokens for output in recorder.outputs}
    assert hits == {"first": 0, "again": 32, "other": 0}
    assert compare(recorder, reference("whisper"), requests) < TOLERANCE
    assert len(engine.encodes()) == 2


def test_a_found_prefix_whose_states_are_gone_has_them_stored_again(
    checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint("whisper")
    engine = Engine(engine_options(folder, state_pages=1, encoder_cache_bytes=0))
    recorder = Recorder(engine)
    prompt, sounds = words(40, 1), [heard(folder, sound(20_000, seed)) for seed in (1, 2)]
    requests = [
        Request(name, prompt, greedy(4), [item])
        for name, item in (("first", sounds[0]), ("other", sounds[1]), ("again", sounds[0]))
    ]
    for request in requests:
        recorder.run(request)
    assert recorder.outputs[-1].cached_tokens == 32
    assert len(engine.encodes()) == 3
    assert compare(recorder, reference("whisper"), requests) < TOLERANCE


def test_answers_of_one_request_share_its_states(checkpoint: Folder, reference: Model) -> None:
    folder = checkpoint("whisper")
    engine = Engine(engine_options(folder, state_pages=1))
    recorder = Recorder(engine)
    requests = requests_for(folder, count=1, n=3)
    recorder.run(*requests)
    assert max(len(batch.slices) for batch in recorder.batches) == 3
    assert compare(recorder, reference("whisper"), requests) < TOLERANCE


def test_tokens_before_a_sound_attend_to_none_and_those_behind_it_to_the_last(
    checkpoint: Folder, reference: Model
) -> None:
    """As in a conversation with pictures; the states of nothing are zeros, which add a bias."""
    folder = checkpoint("whisper")
    sounds = [sound(9_000, 1), sound(15_000, 2)]
    tokens = words(50, 3)
    media = [heard(folder, sounds[0], 10), heard(folder, sounds[1], 31)]
    model = reference("whisper").model.model
    found = {}
    for path in PATHS:
        for budget in (512, 9):
            recorder = Recorder(engine_on(path, folder, max_tokens_per_step=budget))
            recorder.run(Request("r", tokens, greedy(1, prompt_logprobs=0), media))
            found[path, budget] = torch.stack(
                [recorder.rows["r", 0, place] for place in range(len(tokens))]
            )
    expected = _by_parts(model, tokens, [(0, None), (10, media[0]), (31, media[1])])
    expected = expected @ reference("whisper").model.proj_out.weight.T
    for logits in found.values():
        assert (logits - expected).abs().max() < TOLERANCE
    wrong = _by_parts(model, tokens, [(0, None), (10, media[0]), (32, media[1])])
    wrong = wrong @ reference("whisper").model.proj_out.weight.T
    assert (logits - wrong).abs().max() > 100 * TOLERANCE


@torch.no_grad()
def _by_parts(
    model: object, tokens: list[int], parts: list[tuple[int, MediaItem | None]]
) -> torch.Tensor:
    """transformers' layers one by one, each part of the tokens with the states of its own."""
    decoder = model.decoder
    count = len(tokens)
    hidden = decoder.embed_tokens(torch.tensor([tokens])) + decoder.embed_positions.weight[:count]
    mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
    ends = [start for start, _ in parts[1:]] + [count]
    for layer in decoder.layers:
        normed = layer.self_attn_layer_norm(hidden)
        hidden = hidden + layer.self_attn(normed, attention_mask=mask)[0]
        normed = layer.encoder_attn_layer_norm(hidden)
        attended = []
        for (start, item), end in zip(parts, ends, strict=True):
            if item is None:
                zeros = torch.zeros_like(normed[:, start:end])
                attended.append(layer.encoder_attn.out_proj(zeros))
                continue
            states = model.encoder(item.tensors["features"][None]).last_hidden_state
            attended.append(layer.encoder_attn(normed[:, start:end], key_value_states=states)[0])
        hidden = hidden + torch.cat(attended, dim=1)
        inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
        hidden = hidden + layer.fc2(inner)
    return decoder.layer_norm(hidden)[0]


@pytest.mark.parametrize("path", PATHS)
def test_a_prompts_attention_is_that_of_transformers(path: str, checkpoint: Folder) -> None:
    """Whole and in chunks, beside others, after what is the same was computed before."""
    folder = checkpoint("whisper")
    wanted = Alignment(((0, 1), (2, 0)), first=3, states=70)
    prompt, item = words(40, 1), heard(folder, sound(20_000, 1))
    model = WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        found = model(
            item.tensors["features"][None],
            decoder_input_ids=torch.tensor([prompt]),
            output_attentions=True,
        ).cross_attentions
    weights = torch.stack([found[layer][0, head] for layer, head in wanted.heads])[:, 3:, :70]
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    normed = (weights - mean) / deviation
    expected = _median_filter(normed, 7).mean(dim=0)
    for budget in (512, 9):
        engine = engine_on(path, folder, max_tokens_per_step=budget)
        recorder = Recorder(engine)
        recorder.run(Request("before", prompt, greedy(2), [item]))
        asked = Request("r", prompt, media=[item], pooling="last", alignment=wanted)
        recorder.run(*requests_for(folder, count=2), asked)
        [vector] = [one.vector for one in recorder.outputs if one.vector is not None]
        torch.testing.assert_close(torch.from_numpy(vector), expected, rtol=0, atol=1e-3)
        assert (normed[0] - expected).abs().max() > 0.1  # control: one head is not the mean


def test_an_alignment_that_cannot_be_is_refused(checkpoint: Folder) -> None:
    folder = checkpoint("whisper")
    engine, item = Engine(engine_options(folder)), heard(folder, sound(100, 1))
    good = Alignment(((0, 1),), first=2, states=9)
    for wanted, media in (
        (replace(good, heads=((3, 0),)), [item]),
        (replace(good, heads=((0, 2),)), [item]),
        (replace(good, heads=()), [item]),
        (replace(good, first=5), [item]),
        (replace(good, states=0), [item]),
        (good, []),
        (good, [replace(item, start=2)]),
    ):
        asked = Request("r", words(5, 1), media=media, pooling="last", alignment=wanted)
        with pytest.raises(RequestRefused):
            engine.add(asked)
    llama = Engine(engine_options(checkpoint("llama")))
    with pytest.raises(RequestRefused, match="aligned"):
        llama.add(Request("r", words(5, 1), pooling="last", alignment=good))
    assert not engine.has_work()


def test_what_cannot_be_attended_to_is_refused(checkpoint: Folder) -> None:
    folder = checkpoint("whisper")
    engine = Engine(engine_options(folder, state_pages=1))
    item = heard(folder, sound(100, 1))
    cut = {"features": item.tensors["features"][:, :-1]}
    for media, why in (
        ([item, item], "one after another"),
        ([item, replace(item, start=3)], "2 pages of states, and there are 1"),
        ([replace(item, states=7)], "7"),
        ([replace(item, states=0, length=1)], "states"),
        ([replace(item, length=2)], "across"),
        ([replace(item, tensors=cut)], "another shape"),
    ):
        with pytest.raises(RequestRefused, match=why):
            engine.add(Request("r", words(5, 1), greedy(1), media))
    other = Engine(engine_options(checkpoint("ultravox")))
    with pytest.raises(RequestRefused, match="across"):
        other.add(Request("r", words(5, 1), greedy(1), [item]))


def test_recordings_are_refused(checkpoint: Folder) -> None:
    with pytest.raises(ModelUnsupported, match=r"engine\.graphs=false"):
        engine_on("cuda graphs", checkpoint("whisper"))


def test_samples_beyond_the_last_whole_frame_change_nothing(checkpoint: Folder) -> None:
    family = Whisper(checkpoint("whisper"))
    waves = sound(40_000, 1)
    more = np.concatenate([waves, waves[:100]])
    shapes = [family.preprocess_audio(one)["features"].shape for one in (waves, more)]
    assert shapes == [(16, 250), (16, 250)]
