"""Videos, and embeddings in place of pictures, give the logits of transformers' own forward."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

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
from engine.core import Engine
from engine.errors import RequestRefused
from engine.models.family import VideoOptions
from engine.models.item_tensors import tensors_of
from engine.models.registry import family_for
from engine.request import MediaItem, Request

Folder = Callable[[str], Path]
Model = Callable[[str], Reference]
Clip = list[Image.Image]

PLAIN = VideoOptions()


def words(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(300, 500), k=count)


def clip(count: int, width: int, height: int, seed: int) -> Clip:
    return [picture(width, height, 1000 * seed + number) for number in range(count)]


def prompt_of(
    folder: Path, parts: Sequence[list[int] | Image.Image | Clip]
) -> tuple[list[int], list[MediaItem]]:
    """Token ids and items of text ids, pictures and clips in order."""
    family = family_for(folder)
    tokens: list[int] = []
    media: list[MediaItem] = []
    for part in parts:
        if isinstance(part, list) and isinstance(part[0], int):
            tokens += part  # type: ignore[arg-type]
            continue
        if isinstance(part, Image.Image):
            [item] = prompt_with_images(folder, [part])[1]
            item = replace(item, start=len(tokens))
        else:
            item = video_item(folder, part, len(tokens))  # type: ignore[arg-type]
        media.append(item)
        tokens += [family.config[f"{item.modality}_token_id"]] * item.length
    return tokens, media


def video_item(folder: Path, frames: Clip, start: int) -> MediaItem:
    family = family_for(folder)
    length = family.video_tokens(len(frames), *frames[0].size, PLAIN)
    tensors = tensors_of(family.preprocess_video(iter(frames), len(frames), PLAIN))
    digest = b"".join(frame.tobytes()[:16] for frame in frames)
    return MediaItem("video", digest, start, length, tensors)


@pytest.mark.parametrize("budget", [512, 7])
def test_videos_and_pictures_agree_with_transformers(
    budget: int, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint("qwen2_vl")
    recorder = Recorder(Engine(engine_options(folder, max_tokens_per_step=budget)))
    small, long, wide = clip(4, 60, 90, 1), clip(30, 28, 28, 2), clip(3, 200, 90, 3)
    prompts = [
        prompt_of(folder, [words(5, 1), small, words(9, 2)]),
        prompt_of(folder, [long, words(3, 3)]),
        prompt_of(folder, [words(2, 4), picture(60, 90, 1), words(3, 5), wide, words(4, 6)]),
        prompt_of(folder, [words(2, 7), wide, words(3, 8), picture(80, 60, 2), small, words(1, 9)]),
        prompt_of(folder, [words(30, 10)]),
    ]
    requests = [
        Request(f"r{number}", tokens, greedy(6, prompt_logprobs=0), media)
        for number, (tokens, media) in enumerate(prompts)
    ]
    recorder.run(*requests)
    assert compare(recorder, reference("qwen2_vl"), requests) < TOLERANCE
    for request in requests:
        expected = reference("qwen2_vl").generate(request.prompt_ids, 6, request.media)
        assert recorder.tokens[request.id, 0] == expected


def test_frames_in_reverse_change_the_logits(checkpoint: Folder, reference: Model) -> None:
    """Control: the comparison above would notice the order of frames."""
    folder = checkpoint("qwen2_vl")
    frames = clip(6, 60, 60, 1)
    tokens, media = prompt_of(folder, [words(5, 1), frames, words(4, 2)])
    recorder = Recorder(Engine(engine_options(folder)))
    request = Request("r", tokens, greedy(2), media)
    recorder.run(request)
    assert compare(recorder, reference("qwen2_vl"), [request]) < TOLERANCE
    _, backwards = prompt_of(folder, [words(5, 1), frames[::-1], words(4, 2)])
    assert (
        compare(recorder, reference("qwen2_vl"), [replace(request, media=backwards)])
        > 100 * TOLERANCE
    )


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_embeddings_of_a_picture_stand_for_the_picture(
    family: str, checkpoint: Folder, reference: Model
) -> None:
    folder = checkpoint(family)
    engine = Engine(engine_options(folder, prefix_cache=False))
    recorder = Recorder(engine)
    parts = [words(5, 1), picture(60, 90, 1), words(9, 2), picture(200, 120, 2), words(3, 3)]
    tokens, media = prompt_with_images(folder, parts)
    shown = Request("shown", tokens, greedy(6), media)
    given = Request("given", tokens, greedy(6), [embedded(engine, item) for item in media])
    half = Request("half", tokens, greedy(6), [media[0], embedded(engine, media[1])])
    recorder.run(given)
    assert engine.stats().encoder_cache_misses == 0
    recorder.run(shown, half)
    for request in (shown, given, half):
        seen = replace(request, media=media)
        assert compare(recorder, reference(family), [seen]) < TOLERANCE
    assert recorder.tokens["given", 0] == recorder.tokens["shown", 0]
    exchanged = [replace(m, tensors=o.tensors) for m, o in zip(media, media[::-1], strict=True)]
    if family == "llava":  # control, where both pictures have as many tokens
        other = replace(given, media=exchanged)
        assert compare(recorder, reference(family), [other]) > 100 * TOLERANCE


def test_embeddings_that_do_not_fit_their_place_are_refused(checkpoint: Folder) -> None:
    engine = Engine(engine_options(checkpoint("llava")))
    tokens, [item] = prompt_with_images(checkpoint("llava"), [words(3, 1), picture(60, 60, 1)])
    for shape in [(item.length - 1, 64), (item.length, 63), (1, item.length, 64)]:
        wrong = replace(item, tensors={"embeds": torch.zeros(shape)})
        with pytest.raises(RequestRefused, match="embeds"):
            engine.add(Request("r", tokens, greedy(1), [wrong]))
    assert not engine.has_work()


def embedded(engine: Engine, item: MediaItem) -> MediaItem:
    """The same item as its tower's output."""
    loaded = engine._runner.loaded
    with torch.inference_mode():
        [embeds] = loaded.family.encode(loaded.model, [item])
    kept = {name: tensor for name, tensor in item.tensors.items() if name.endswith("grid_thw")}
    return replace(item, digest=b"e" + item.digest, tensors={"embeds": embeds.clone(), **kept})
