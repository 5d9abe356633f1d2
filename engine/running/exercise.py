"""The largest steps there can be, made up: to compile kernels and to see what memory it takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from engine.models.family import Family, VideoOptions
from engine.models.item_tensors import tensors_of
from engine.options import EngineOptions
from engine.request import MediaItem, Request, SamplingOptions
from engine.scheduling.batch import Batch, build_batch
from engine.scheduling.scheduler import Slice
from engine.scheduling.sequence import Sequence

LONGEST_SOUND = 240  # seconds: eight chunks of thirty
SHORTEST_CLIP = 2  # frames: a tower's patches may reach over two
LARGEST_SIDE = 4096  # pixels; a family shrinks a larger picture itself
FRAME_SIDE = 1024  # pixels; a family shrinks it to what a frame keeps
MOST_LOGPROBS = 20
EVERYTHING = SamplingOptions(  # every filter and penalty at work
    max_tokens=1,
    temperature=1.0,
    top_p=0.9,
    top_k=50,
    min_p=0.01,
    frequency_penalty=0.1,
    repetition_penalty=1.1,
    logprobs=MOST_LOGPROBS,
)


def pages_needed(options: EngineOptions) -> int:
    """Pages that the steps below write to."""
    sequences, length = _shape(options)
    return sequences * -(-length // options.page_size)


def largest_prefill(options: EngineOptions, family: Family) -> Batch:
    """As many tokens as a step may have, of as many sequences as may run."""
    return _step(options, family, *_shape(options))


def shortest_prefill(options: EngineOptions, family: Family) -> Batch:
    """One prompt of two tokens, for which there may be other kernels."""
    return _step(options, family, 1, min(2, _shape(options)[1]))


def with_spans(batch: Batch) -> Batch:
    """The same tokens, those of each sequence attending both ways."""
    counts = batch.query_start.diff()
    lasts = torch.tensor(batch.lengths, dtype=torch.int32) - 1
    spans = torch.stack((torch.zeros_like(lasts), lasts), dim=1).repeat_interleave(counts, dim=0)
    return replace(batch, spans=spans)


def with_prompt_rows(batch: Batch, rows: int) -> Batch:
    """The same tokens, the logits of the first `rows` wanted before all others."""
    return replace(batch, logit_rows=torch.cat((torch.arange(rows), batch.logit_rows)))


def largest_decode(options: EngineOptions, family: Family) -> Batch:
    """One token of each sequence that may run."""
    return _step(options, family, _shape(options)[0], 1)


def _step(options: EngineOptions, family: Family, sequences: int, length: int) -> Batch:
    pages = -(-length // options.page_size)
    request = Request("", [0] * length, EVERYTHING)
    positions, offset = family.positions(request.prompt_ids, [])
    slices = []
    for index in range(sequences):
        first = 1 + index * pages
        sequence = Sequence(
            request=request,
            index=index,
            arrival=0,
            salt=b"",
            positions=positions,
            position_offset=offset,
            tokens=list(request.prompt_ids),
            pages=list(range(first, first + pages)),
        )
        slices.append(Slice(sequence, 0, length))
    return build_batch(slices, options.page_size)


def largest_images(options: EngineOptions, family: Family) -> list[MediaItem]:
    """Images as large as they come, as many as the towers get in one step."""
    side = _side(LARGEST_SIDE, lambda side: family.image_tokens(side, side), options)
    return images(options, family, side) if side else []


def images(options: EngineOptions, family: Family, side: int) -> list[MediaItem]:
    """Square images of that many pixels a side, as many as the towers get in one step."""
    length = family.image_tokens(side, side)
    tensors = tensors_of(family.preprocess_image(Image.new("RGB", (side, side))))
    count = max(1, options.max_tokens_per_step // length)
    return [MediaItem("image", b"", 0, length, tensors) for _ in range(count)]


def largest_videos(options: EngineOptions, family: Family) -> list[MediaItem]:
    """Clips of as many large frames as a prompt holds, as many as the towers get in one step."""
    asked, side = VideoOptions(), _frame_side(options, family)
    if not side:
        return []
    frames = SHORTEST_CLIP
    while family.video_tokens(2 * frames, side, side, asked) <= options.max_len:
        frames *= 2
    step = frames
    while step := step // 2:
        if family.video_tokens(frames + step, side, side, asked) <= options.max_len:
            frames += step
    clip = _clip(family, frames, side)
    return [clip] * max(1, options.max_tokens_per_step // clip.length)


def largest_sounds(options: EngineOptions, family: Family) -> list[MediaItem]:
    """A sound as long as a prompt holds, up to as many chunks as a tower hears together.

    More of them would go through it one after another.
    """
    return _sounds(options, family, LONGEST_SOUND)


LARGEST = {"image": largest_images, "video": largest_videos, "audio": largest_sounds}


def first_items(modality: str, options: EngineOptions, family: Family) -> list[MediaItem]:
    """What compiles all that a tower runs: one large picture, two such frames or a second.

    Nothing where a prompt holds no item of the kind.
    """
    if modality == "audio":
        return _sounds(options, family, 1)
    if modality == "image":
        return largest_images(options, family)[:1]
    side = _frame_side(options, family)
    return [_clip(family, SHORTEST_CLIP, side)] if side else []


def _side(largest: int, tokens: Callable[[int], int], options: EngineOptions) -> int:
    """Side of the largest square that a prompt holds; 0 if it holds none."""
    side = largest
    while side and tokens(side) > options.max_len:
        side = side * 9 // 10
    return side


def _frame_side(options: EngineOptions, family: Family) -> int:
    asked = VideoOptions()
    return _side(
        FRAME_SIDE, lambda side: family.video_tokens(SHORTEST_CLIP, side, side, asked), options
    )


def _clip(family: Family, frames: int, side: int) -> MediaItem:
    pictures = (Image.new("RGB", (side, side)) for _ in range(frames))
    tensors = tensors_of(family.preprocess_video(pictures, frames, VideoOptions()))
    length = family.video_tokens(frames, side, side, VideoOptions())
    return MediaItem("video", b"", 0, length, tensors)


def _sounds(options: EngineOptions, family: Family, seconds: int) -> list[MediaItem]:
    samples = min(family.audio_rate() * seconds, family.most_samples or sys.maxsize)
    states = family.item_states("audio")
    while not states and samples and family.audio_tokens(samples) > options.max_len:
        samples = samples * 9 // 10
    if not samples:
        return []
    tensors = tensors_of(family.preprocess_audio(np.zeros(samples, np.float32)))
    length = 0 if states else family.audio_tokens(samples)
    return [MediaItem("audio", b"", 0, length, tensors, states)]


def _shape(options: EngineOptions) -> tuple[int, int]:
    sequences = min(options.max_sequences, max(1, options.max_tokens_per_step // 2))
    return sequences, min(options.max_tokens_per_step // sequences, options.max_len)
