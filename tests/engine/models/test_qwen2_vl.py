from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from engine.models.qwen2_vl import Qwen2VL
from engine.request import MediaItem
from tests.checkpoints import write_qwen2_vl
from tests.engine.models.pictures import media_item, picture, processed, tower_inputs

SIZES = [
    (56, 56), (1, 1), (2, 3), (1, 200), (200, 1), (27, 29), (28, 28), (640, 480), (481, 333),
    (1000, 50), (37, 1111), (224, 224), (99, 700),
]  # fmt: skip


@pytest.fixture(scope="module")
def processor(qwen2_vl_folder: Path) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil.from_pretrained(qwen2_vl_folder)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_those_of_the_transformers_processor(
    size: tuple[int, int], qwen2_vl: Qwen2VL, processor: Any
) -> None:
    image = picture(*size)
    ours = processed(qwen2_vl, image)
    theirs = processor(image, return_tensors="pt")
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert ours["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-5)
    assert qwen2_vl.image_tokens(*size) == len(ours["pixel_values"]) // 4


def test_pixels_of_a_mirrored_picture_differ(qwen2_vl: Qwen2VL, processor: Any) -> None:
    image = picture(640, 480)
    ours = processed(qwen2_vl, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    theirs = processor(image, return_tensors="pt")
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().max() > 0.1


def test_resized_size_equals_that_of_transformers_for_random_sizes(qwen2_vl: Qwen2VL) -> None:
    rng = random.Random(1)
    for _ in range(3000):
        height = rng.choice([1, 2, 3, 13, 14, 27, 28, 42, 70, 99]) * rng.choice([1, 3, 17, 100])
        width = rng.randint(max(1, -(-height // 200)), min(20000, height * 200))
        theirs = smart_resize(height, width, 28, qwen2_vl.min_pixels, qwen2_vl.max_pixels)
        assert qwen2_vl.image_size(width, height) == theirs[::-1]


@pytest.mark.parametrize("size", [(201, 1), (10000, 1), (1, 10000)])
def test_a_strip_is_refused(size: tuple[int, int], qwen2_vl: Qwen2VL) -> None:
    with pytest.raises(ValueError, match="200 times"):
        qwen2_vl.image_tokens(*size)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"shortest_edge": 6272, "longest_edge": 31360}},
        {"max_pixels": 50176},
        {"do_normalize": False},
        {"resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]},
    ],
)
def test_settings_of_the_checkpoint_are_followed(
    options: dict[str, Any], qwen2_vl: Qwen2VL, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((qwen2_vl.folder / "config.json").read_text())
    processor = Qwen2VLImageProcessorPil(**options)
    processor.save_pretrained(tmp_path)
    image = picture(300, 411)
    ours = processed(Qwen2VL(tmp_path), image)
    theirs = processor(image, return_tensors="pt")
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-4)


def test_embeddings_of_a_batch_equal_those_of_each_image_alone(
    qwen2_vl: Qwen2VL, qwen2_vl_model: Any
) -> None:
    items = [
        media_item(qwen2_vl, picture(*size)) for size in [(56, 56), (640, 480), (50, 300), (1, 1)]
    ]
    with torch.inference_mode():
        ours = qwen2_vl.encode(qwen2_vl_model, items)
        inputs = [tower_inputs(qwen2_vl, item) for item in items]
        alone = [qwen2_vl_model.get_image_features(**one).pooler_output[0] for one in inputs]
    for item, embedding, expected in zip(items, ours, alone, strict=True):
        assert embedding.shape == (item.length, 64)
        torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-4)
    assert (ours[0][0] - alone[1][0]).abs().max() > 0.1


IMAGES = [
    [],
    [(0, (56, 56))],
    [(5, (640, 480))],
    [(3, (640, 200)), (7, (200, 640)), (1, (56, 56))],
    [(2, (1, 1)), (1, (1, 200)), (4, (300, 300)), (1, (77, 400))],
]


@pytest.mark.parametrize("layout", IMAGES)
def test_positions_equal_those_of_transformers(
    layout: list[tuple[int, tuple[int, int]]], qwen2_vl: Qwen2VL, qwen2_vl_model: Any
) -> None:
    ids, media = _prompt(qwen2_vl, layout)
    ours, offset = qwen2_vl.positions(ids, media)
    theirs, delta = _transformers_positions(qwen2_vl_model, ids, media)
    assert torch.equal(ours, theirs)
    assert offset == delta


def test_positions_of_a_turned_image_differ(qwen2_vl: Qwen2VL, qwen2_vl_model: Any) -> None:
    ids, media = _prompt(qwen2_vl, [(3, (640, 200))])
    _, turned = _prompt(qwen2_vl, [(3, (200, 640))])
    ours, _ = qwen2_vl.positions(ids, turned)
    theirs, _ = _transformers_positions(qwen2_vl_model, ids, media)
    assert not torch.equal(ours, theirs)


def test_the_published_flat_config_is_understood(tmp_path: Path, qwen2_vl: Qwen2VL) -> None:
    flat = Qwen2VL(write_qwen2_vl(tmp_path, flat=True))
    assert "text_config" not in flat.config
    names = ["hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"]
    assert [flat.text_config()[name] for name in names] == [
        qwen2_vl.text_config()[name] for name in names
    ]


def _prompt(
    family: Qwen2VL, layout: list[tuple[int, tuple[int, int]]]
) -> tuple[list[int], list[MediaItem]]:
    pad, start, end = (
        family.config[name]
        for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id")
    )
    ids: list[int] = [7]
    media: list[MediaItem] = []
    for text, size in layout:
        ids += [*range(text), start]
        media.append(media_item(family, picture(*size), start=len(ids)))
        ids += [pad] * media[-1].length + [end]
    return [*ids, 1, 2, 3], media


def _transformers_positions(
    model: Any, ids: list[int], media: list[MediaItem]
) -> tuple[torch.Tensor, int]:
    tokens = torch.tensor([ids])
    grids = [item.tensors["image_grid_thw"] for item in media]
    positions, delta = model.model.get_rope_index(
        tokens,
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        image_grid_thw=torch.cat(grids) if grids else None,
    )
    return positions[:, 0], int(delta)
