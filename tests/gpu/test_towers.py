"""A tower's work is queued behind the step in flight: while it is, the host must not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.reference import picture, prompt_with_images
from bench.stand_in.platforms import StandIn, cuda_path
from engine.core import Engine
from engine.models.registry import family_for
from engine.request import MediaItem
from engine.running.exercise import first_items

# what a tensor of a card answers only when all work before it is done
WAITS = {"tolist", "item", "cpu", "numpy", "nonzero", "repeat_interleave", "unique", "__bool__"}
WAITS |= {"__int__", "__float__", "__index__", "masked_select"}


class OnCard(torch.Tensor):
    """A tensor whose values the host has to wait for, and what is computed of it likewise."""

    waits: list[str] = []  # noqa: RUF012 - one list for all

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in WAITS:
            cls.waits.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


class Watched(StandIn):
    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.as_subclass(OnCard)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    OnCard.waits.clear()
    yield
    OnCard.waits.clear()


def engine_and_items(family: str, folder: Path) -> tuple[Engine, list[MediaItem]]:
    modalities = family_for(folder).available
    engine = cuda_path(folder, StandIn(), modalities=modalities, max_len=400)
    engine._runner.media._platform = Watched()
    items = [
        item
        for modality in modalities
        for item in first_items(modality, engine._runner._options, family_for(folder))
    ]
    if "image" in modalities:
        items += prompt_with_images(folder, [[5], picture(60, 90, 1), picture(120, 60, 2)])[1]
    return engine, items


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3", "ultravox"])
def test_encoding_waits_for_nothing(family: str, checkpoint: Callable[[str], Path]) -> None:
    engine, items = engine_and_items(family, checkpoint(family))
    encoded = engine._runner.media.encode(items)
    assert len(encoded) == len(items)
    assert all(type(embeddings) is OnCard for embeddings in encoded)  # all that is large was sent
    assert OnCard.waits == []


def test_a_tower_that_waits_is_noticed(checkpoint: Callable[[str], Path]) -> None:
    """Control: transformers left to find out the sizes of pictures by itself."""
    engine, items = engine_and_items("qwen2_vl", checkpoint("qwen2_vl"))
    loaded, upload = engine._runner.loaded, Watched().upload
    inputs = loaded.family.tower_inputs(items[0], upload)
    with torch.inference_mode():
        loaded.model.model.visual(inputs["pixel_values"], upload(inputs["image_grid_thw"]))
    assert OnCard.waits.count("tolist") >= 3 * loaded.model.config.vision_config.depth
