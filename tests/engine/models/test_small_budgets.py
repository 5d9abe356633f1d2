"""A Qwen2-VL whose pictures and frames are a hundred pixels wide, as the demo model's are."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from engine.models.family import VideoOptions
from engine.models.qwen2_vl import Qwen2VL
from tests.engine.models.pictures import picture, processed
from tests.engine.models.test_qwen2_vl_video import clip, frames_of, tower_inputs
from tests.engine.models.video_processor import VideoProcessor

Bounds = tuple[int, int]
BOUNDS = [(19600, 19600), (138**2, 142**2), (15680, 23520)]
FRAME_BOUNDS = [(9604, 9604), (82**2, 98**2), (10976, 14112)]
SIZES = [
    (140, 140), (139, 141), (16, 16), (98, 98), (204, 204), (288, 288), (640, 480), (480, 640),
    (64, 48), (1000, 100), (33, 170), (1024, 1024),
]  # fmt: skip
PLAIN = VideoOptions()


def old(bounds: Bounds) -> dict[str, Any]:
    """As published with Qwen2-VL."""
    return {"min_pixels": bounds[0], "max_pixels": bounds[1]}


def new(bounds: Bounds) -> dict[str, Any]:
    """As transformers 5 writes it."""
    return {"size": {"shortest_edge": bounds[0], "longest_edge": bounds[1]}}


def both(bounds: Bounds) -> dict[str, Any]:
    return old(bounds) | new(bounds)


STYLES = pytest.mark.parametrize("style", [old, new, both])


def family(source: Path, folder: Path, image: dict[str, Any], video: dict[str, Any]) -> Qwen2VL:
    (folder / "config.json").write_text((source / "config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return Qwen2VL(folder)


@STYLES
@pytest.mark.parametrize("bounds", BOUNDS)
def test_pictures_are_those_of_the_transformers_processor(
    style: Any, bounds: Bounds, qwen2_vl_folder: Path, tmp_path: Path
) -> None:
    ours = family(qwen2_vl_folder, tmp_path, style(bounds), style((784, 784)))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    for size in SIZES:
        shown = picture(*size)
        expected = theirs(shown, return_tensors="pt")
        found = processed(ours, shown)
        assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])
        torch.testing.assert_close(
            found["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-5
        )
        assert ours.image_tokens(*size) == expected["image_grid_thw"].prod() // 4


@STYLES
@pytest.mark.parametrize("bounds", FRAME_BOUNDS)
def test_frames_are_those_of_the_transformers_processor(
    style: Any, bounds: Bounds, qwen2_vl_folder: Path, tmp_path: Path
) -> None:
    ours = family(qwen2_vl_folder, tmp_path, style((784, 784)), style(bounds))
    theirs = VideoProcessor(**style(bounds))
    for size in SIZES:
        frames = frames_of(8, *size)
        item = clip(ours, frames)
        expected = theirs(frames)
        found = tower_inputs(ours, item)
        assert torch.equal(found["video_grid_thw"], expected["video_grid_thw"])
        torch.testing.assert_close(
            found["pixel_values_videos"], expected["pixel_values_videos"], rtol=0, atol=1e-5
        )
        assert item.length == expected["video_grid_thw"].prod() // 4


def test_frames_and_pictures_have_bounds_of_their_own(
    qwen2_vl_folder: Path, tmp_path: Path
) -> None:
    ours = family(qwen2_vl_folder, tmp_path, new((138**2, 142**2)), new((82**2, 98**2)))
    for side in (20, 84, 98, 140, 204, 500, 2000):
        assert ours.image_tokens(side, side) == 25
        assert ours.video_tokens(8, side, side, PLAIN) == 4 * 9


@pytest.mark.parametrize("rate", [5.0, 24.0, 29.97, 60.0])
def test_eight_frames_are_taken_of_every_clip_that_has_them(
    rate: float, qwen2_vl_folder: Path, tmp_path: Path
) -> None:
    video = new((9604, 9604)) | {"num_frames": 8, "do_sample_frames": True}
    ours = family(qwen2_vl_folder, tmp_path, {}, video)
    theirs = VideoProcessor(**video)
    totals = [*range(8, 200), *random.Random(3).sample(range(200, 20_000), 200)]
    for options in (PLAIN, VideoOptions(frames=8)):
        for total in totals:
            taken = ours.sample_frames(total, rate, options)
            assert len(taken) == 8
            assert taken == theirs.indices(total, rate)
    for total in range(1, 8):  # which theirs refuses
        taken = ours.sample_frames(total, rate, PLAIN)
        assert len(taken) == max(total // 2 * 2, 1)
        assert taken == sorted(set(taken))
    at_a_rate = VideoOptions(fps=2.0)
    assert len(ours.sample_frames(3000, 30.0, at_a_rate)) > 8
