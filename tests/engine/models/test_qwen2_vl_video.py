from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from engine.models.family import VideoOptions
from engine.models.item_tensors import tensors_of
from engine.models.qwen2_vl import Qwen2VL
from engine.request import MediaItem
from tests.engine.models.pictures import media_item, picture, tower_inputs
from tests.engine.models.video_processor import VideoProcessor

PLAIN = VideoOptions()


@pytest.fixture(scope="module")
def processor(qwen2_vl_folder: Path) -> VideoProcessor:
    return VideoProcessor(qwen2_vl_folder, fps=2.0)


def frames_of(count: int, width: int, height: int, seed: int = 0) -> list[Image.Image]:
    return [picture(width, height, seed=100 * seed + number) for number in range(count)]


def clip(family: Qwen2VL, frames: list[Image.Image], start: int = 0) -> MediaItem:
    tensors = tensors_of(family.preprocess_video(iter(frames), len(frames), PLAIN))
    length = family.video_tokens(len(frames), *frames[0].size, PLAIN)
    digest = b"".join(frame.tobytes()[:32] for frame in frames)
    return MediaItem("video", digest, start, length, tensors)


def test_frames_are_sampled_as_by_the_transformers_processor(
    qwen2_vl: Qwen2VL, processor: VideoProcessor
) -> None:
    rng = random.Random(2)
    seen = set()
    for _ in range(3000):
        total = rng.choice([rng.randint(2, 40), rng.randint(2, 3000)])
        fps = rng.choice([1, 5, 12.5, 23.976, 24, 25, 29.97, 30, 59.94, 60, 0.5])
        wanted = rng.choice([None, 0.1, 0.5, 1.0, 2.0, 3.7, 60.0])
        most = rng.choice([None, 2, 7, 32, 100, 768])
        theirs = processor.indices(
            total, fps, fps=wanted, max_frames=most, min_frames=min(4, most or 4)
        )
        ours = qwen2_vl.sample_frames(total, fps, VideoOptions(frames=most, fps=wanted))
        assert ours == [index for index in theirs if index < total], (total, fps, wanted, most)
        seen.add(len(ours))
    assert len(seen) > 100


@pytest.mark.parametrize("config", [{"num_frames": 8}, {"fps": 4.0}, {"fps": 1, "max_frames": 6}])
def test_sampling_follows_the_checkpoint(
    config: dict[str, Any], qwen2_vl: Qwen2VL, tmp_path: Path
) -> None:
    processor = VideoProcessor(_copied(qwen2_vl, tmp_path, config))
    family = Qwen2VL(tmp_path)
    for total, fps in [(300, 30.0), (61, 24.0), (9, 25.0)]:
        assert family.sample_frames(total, fps, PLAIN) == processor.indices(total, fps)
    assert family.sample_frames(300, 30.0, PLAIN) != qwen2_vl.sample_frames(300, 30.0, PLAIN)


def test_a_video_too_short_for_the_processor_is_taken_whole(qwen2_vl: Qwen2VL) -> None:
    assert qwen2_vl.sample_frames(1, 30.0, PLAIN) == [0]
    assert qwen2_vl.sample_frames(50, 25.0, VideoOptions(frames=1)) == [0]


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (4, (224, 224)),
        (2, (640, 360)),
        (5, (100, 333)),
        (1, (56, 84)),
        (7, (31, 31)),
        (3, (900, 90)),
    ],
)
def test_patches_equal_those_of_the_transformers_processor(
    count: int, size: tuple[int, int], qwen2_vl: Qwen2VL, processor: VideoProcessor
) -> None:
    frames = frames_of(count, *size)
    ours = tower_inputs(qwen2_vl, clip(qwen2_vl, frames))
    theirs = processor(frames)
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])
    torch.testing.assert_close(
        ours["pixel_values_videos"], theirs["pixel_values_videos"], rtol=0, atol=1e-5
    )
    tokens = qwen2_vl.video_tokens(count, *size, PLAIN)
    assert tokens == theirs["video_grid_thw"].prod() // 4 == len(ours["pixel_values_videos"]) // 4


def test_patches_of_frames_in_reverse_differ(qwen2_vl: Qwen2VL, processor: VideoProcessor) -> None:
    frames = frames_of(4, 224, 224)
    ours = tower_inputs(qwen2_vl, clip(qwen2_vl, frames[::-1]))
    difference = (ours["pixel_values_videos"] - processor(frames)["pixel_values_videos"]).abs()
    assert difference.max() > 0.1


@pytest.mark.parametrize("frames", [2, 5, 16, 61, 400])
def test_the_token_budget_is_that_of_the_transformers_processor(
    frames: int, qwen2_vl: Qwen2VL, tmp_path: Path
) -> None:
    options = {"cap_pixels_per_frame": True, "max_video_tokens": 600}
    processor = VideoProcessor(_copied(qwen2_vl, tmp_path, options))
    video = frames_of(1, 320, 240) * frames
    _, rows, columns = processor(video)["video_grid_thw"][0].tolist()
    size = (columns * 14, rows * 14)
    assert Qwen2VL(tmp_path).video_size(frames, 320, 240, PLAIN) == size
    assert qwen2_vl.video_size(frames, 320, 240, VideoOptions(tokens=600)) == size
    uncapped = qwen2_vl.video_size(frames, 320, 240, PLAIN)
    assert (uncapped != size) == (frames > 20)


def test_fewer_pixels_of_a_frame_give_fewer_tokens(
    qwen2_vl: Qwen2VL, processor: VideoProcessor
) -> None:
    frames = frames_of(4, 300, 200)
    options = VideoOptions(frame_pixels=20_000)
    ours = tensors_of(qwen2_vl.preprocess_video(iter(frames), 4, options))
    size = {"shortest_edge": 4 * 28 * 28, "longest_edge": 20_000}
    assert torch.equal(ours["video_grid_thw"], processor(frames, size=size)["video_grid_thw"])
    tokens = qwen2_vl.video_tokens(4, 300, 200, options)
    assert tokens == ours["video_grid_thw"].prod() // 4 < qwen2_vl.video_tokens(4, 300, 200, PLAIN)
    tiny = qwen2_vl.video_size(4, 300, 200, VideoOptions(frame_pixels=1000))
    assert tiny[0] * tiny[1] <= 1000


def test_a_strip_is_refused(qwen2_vl: Qwen2VL) -> None:
    with pytest.raises(ValueError, match="200 times"):
        qwen2_vl.video_tokens(4, 402, 2, PLAIN)


def test_embeddings_of_videos_and_images_together_equal_those_alone(
    qwen2_vl: Qwen2VL, qwen2_vl_model: Any
) -> None:
    video = clip(qwen2_vl, frames_of(6, 100, 60))
    image = media_item(qwen2_vl, picture(300, 200))
    other = clip(qwen2_vl, frames_of(3, 56, 56))
    with torch.inference_mode():
        ours = qwen2_vl.encode(qwen2_vl_model, [video, image, other])
        alone = [
            qwen2_vl_model.get_video_features(**tower_inputs(qwen2_vl, video)).pooler_output[0],
            qwen2_vl_model.get_image_features(**tower_inputs(qwen2_vl, image)).pooler_output[0],
            qwen2_vl_model.get_video_features(**tower_inputs(qwen2_vl, other)).pooler_output[0],
        ]
    for found, expected in zip(ours, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


LAYOUTS = [
    [(3, 4, (56, 56))],
    [(0, 30, (28, 28)), (2, 1, (200, 100))],
    [(2, 0, (300, 60)), (5, 8, (60, 200)), (1, 0, (56, 56)), (4, 3, (112, 56))],
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_equal_those_of_transformers(
    layout: list[tuple[int, int, tuple[int, int]]], qwen2_vl: Qwen2VL, qwen2_vl_model: Any
) -> None:
    ids, media = _prompt(qwen2_vl, layout)
    ours, offset = qwen2_vl.positions(ids, media)
    theirs, delta = _transformers_positions(qwen2_vl_model, ids, media)
    assert torch.equal(ours, theirs)
    assert offset == ours[0, -1] + 1 - len(ids)
    assert offset == delta or ours.max() > ours[0, -1]


@pytest.mark.parametrize(
    ("modality", "grid", "tokens"), [("image", [1, 4, 6], 6), ("video", [3, 2, 2], 3)]
)
def test_a_grid_says_how_many_tokens_embeddings_take(
    modality: str, grid: list[int], tokens: int, qwen2_vl: Qwen2VL
) -> None:
    assert qwen2_vl.embedding_grid(modality) == f"{modality}_grid_thw"
    assert qwen2_vl.embedding_tokens(modality, grid) == tokens


@pytest.mark.parametrize(
    "grid",
    [None, [], [4, 6], [1, 4, 5], [1, 3, 6], [2, 4, 6], [0, 4, 6], [1, -4, -6], [1, 4, 6, 1]],
)
def test_a_grid_that_no_image_has_is_refused(grid: list[int] | None, qwen2_vl: Qwen2VL) -> None:
    with pytest.raises(ValueError, match=r"grid|image|multiples"):
        qwen2_vl.embedding_tokens("image", grid)


def _copied(family: Qwen2VL, folder: Path, options: dict[str, Any]) -> Path:
    (folder / "config.json").write_text((family.folder / "config.json").read_text())
    base = json.loads((family.folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(base | options))
    return folder


def _prompt(
    family: Qwen2VL, layout: list[tuple[int, int, tuple[int, int]]]
) -> tuple[list[int], list[MediaItem]]:
    start, end = (family.config[f"vision_{side}_token_id"] for side in ("start", "end"))
    ids: list[int] = [7]
    media: list[MediaItem] = []
    for text, count, size in layout:
        ids += [*range(text), start]
        if count:
            media.append(clip(family, frames_of(count, *size), start=len(ids)))
        else:
            media.append(media_item(family, picture(*size), start=len(ids)))
        pad = family.config[f"{media[-1].modality}_token_id"]
        ids += [pad] * media[-1].length + [end]
    return [*ids, 1, 2, 3], media


def _transformers_positions(
    model: Any, ids: list[int], media: list[MediaItem]
) -> tuple[torch.Tensor, int]:
    tokens = torch.tensor([ids])
    config = model.config
    kinds = (tokens == config.image_token_id).int() + 2 * (tokens == config.video_token_id).int()
    grids: dict[str, Any] = {"image_grid_thw": None, "video_grid_thw": None}
    for modality in ("image", "video"):
        found = [item for item in media if item.modality == modality]
        if found:
            name = f"{modality}_grid_thw"
            grids[name] = torch.cat([item.tensors[name] for item in found])
    positions, delta = model.model.get_rope_index(tokens, mm_token_type_ids=kinds, **grids)
    return positions[:, 0], int(delta)
