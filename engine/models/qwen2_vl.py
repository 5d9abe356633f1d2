"""Qwen2-VL: pictures keep their shape, and three rows of positions keep it in the prompt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from engine.models.family import Family
from engine.models.pixels import Normaliser, as_bytes, processor_options
from engine.request import MediaItem

MAX_ASPECT_RATIO = 200


class Qwen2VL(Family):
    """Qwen2-VL with images; config.json flat as published or nested as transformers saves it."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2VLForConditionalGeneration",)
    modalities: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        options = processor_options(self.folder)
        self.patch = int(options.get("patch_size", 14))
        self.frames = int(options.get("temporal_patch_size", 2))
        self.merge = int(options.get("merge_size", 2))
        self.min_pixels, self.max_pixels = _pixel_range(options)
        self._resample = Image.Resampling(options.get("resample", Image.Resampling.BICUBIC))
        self._normalise = Normaliser(options)

    def placeholder(self, modality: str) -> str:
        if modality != "image":
            raise KeyError(modality)
        return "<|image_pad|>"

    def item_text(self, modality: str) -> str:
        return f"<|vision_start|>{self.placeholder(modality)}<|vision_end|>"

    def image_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height an image is resized to: whole merged patches, within the pixel range.

        Raises ValueError for a picture more than 200 times as long as wide. Source: `smart_resize`
        of transformers' Qwen2-VL image processor.
        """
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ValueError(f"the image is more than {MAX_ASPECT_RATIO} times as long as wide")
        unit = self.patch * self.merge
        columns, rows = round(width / unit), round(height / unit)
        area = columns * rows * unit * unit
        if area > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            columns = max(1, math.floor(width / shrink / unit))
            rows = max(1, math.floor(height / shrink / unit))
        elif area < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            columns = math.ceil(width * grow / unit)
            rows = math.ceil(height * grow / unit)
        return columns * unit, rows * unit

    def image_tokens(self, width: int, height: int) -> int:
        width, height = self.image_size(width, height)
        return width * height // (self.patch * self.merge) ** 2

    def preprocess_image(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """`pixel_values` `[patches, 3 * frames * patch²]` and `image_grid_thw` `[1, 3]`."""
        size = self.image_size(*image.size)
        pixels = as_bytes(image if size == image.size else image.resize(size, self._resample))
        patch, merge = self.patch, self.merge
        columns, rows = size[0] // patch, size[1] // patch
        blocks = pixels.view(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        blocks = blocks.permute(
            0, 3, 1, 4, 6, 2, 5
        )  # block row, column, row, column, channel, y, x
        patches = torch.empty(rows * columns, 3, self.frames, patch, patch)
        first = patches[:, :, 0]
        first.view(*blocks.shape).copy_(blocks)
        self._normalise.apply(first, dim=1)
        patches[:, :, 1:] = patches[:, :, :1]
        return {
            "pixel_values": patches.view(rows * columns, -1),
            "image_grid_thw": torch.tensor([[1, rows, columns]]),
        }

    def decoder(self, model: Any) -> nn.Module:
        return model.model.language_model

    def drop_towers(self, config: Any) -> None:
        config.vision_config.depth = 0

    def encode(self, model: Any, items: list[MediaItem]) -> list[torch.Tensor]:
        tower = model.model.visual
        pixels = torch.cat([item.tensors["pixel_values"] for item in items])
        grid = torch.cat([item.tensors["image_grid_thw"] for item in items])
        features = tower(pixels.to(tower.device, tower.dtype), grid_thw=grid.to(tower.device))
        return list(features.pooler_output.split([item.length for item in items]))

    def positions(self, prompt_ids: list[int], media: list[MediaItem]) -> tuple[torch.Tensor, int]:
        """Multimodal rotary positions: time, row and column of placeholders, text counting on.

        Source: Qwen2-VL paper, section 2.1.
        """
        positions = torch.arange(len(prompt_ids)).repeat(3, 1)
        offset = 0
        for item in sorted(media, key=lambda item: item.start):
            _, rows, columns = item.tensors["image_grid_thw"][0].tolist()
            rows, columns = rows // self.merge, columns // self.merge
            place = torch.arange(item.length)
            span = positions[:, item.start : item.end]
            span[0] = place // (rows * columns)
            span[1] = place // columns % rows
            span[2] = place % columns
            span += item.start + offset
            offset += max(rows, columns) - item.length
            positions[:, item.end :] += max(rows, columns) - item.length
        return positions, offset


def _pixel_range(options: dict[str, Any]) -> tuple[int, int]:
    size = options.get("size") or {}
    least = options.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels")
    most = options.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels")
    return int(least or 56 * 56), int(most or 28 * 28 * 1280)
