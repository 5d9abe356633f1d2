"""Qwen2-VL: pictures and videos keep their shape, and three rows of positions keep it too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.models.family import Family, VideoOptions, stay
from engine.models.item_tensors import check_length, fitting
from engine.models.pixels import (
    Normaliser,
    Pixels,
    as_bytes,
    processor_options,
    resized,
    video_options,
)
from engine.request import MediaItem

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.models.family import Arrays, Upload

EMBED_DIM, MLP_RATIO, HEADS = 1280, 4, 16  # defaults of transformers' vision configuration
MAX_ASPECT_RATIO = 200
IMAGE_PIXELS = (56 * 56, 28 * 28 * 1280)  # defaults of transformers' image processor
VIDEO_PIXELS = (128 * 28 * 28, 768 * 28 * 28)  # of its video processor, a frame
VIDEO_FRAMES = (4, 768)
VIDEO_FPS = 2.0  # of qwen-vl-utils; transformers' processor takes every frame unless told
VIDEO_TOKENS = 128_000
CUBIC = {Image.Resampling.BICUBIC: True, Image.Resampling.BILINEAR: False}  # as torchvision resizes
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class Qwen2VL(Family):
    """Qwen2-VL; config.json flat as published or nested as transformers saves it."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2VLForConditionalGeneration",)
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    tower_prefixes: ClassVar[tuple[str, ...]] = ("visual.",)
    recorded_places: ClassVar[tuple[int, ...]] = tuple(range(128, 1025, 128))  # patches

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        options, video = processor_options(self.folder), video_options(self.folder)
        self.patch = int(options.get("patch_size", 14))
        self.frames = int(options.get("temporal_patch_size", 2))
        self.merge = int(options.get("merge_size", 2))
        self.unit = self.patch * self.merge
        self.min_pixels, self.max_pixels = _pixel_range(options, IMAGE_PIXELS)
        self._resample = _resampling(options)
        self._normalise = Normaliser(options)
        self._video = video
        self._video_resample = _resampling(video)
        self._video_normalise = Normaliser(video)

    @property
    def available(self) -> tuple[str, ...]:
        there = {
            "image": self.config.get("vision_config") is not None,
            "video": "video_token_id" in self.config,
        }
        return tuple(modality for modality in self.modalities if there[modality])

    def most_tokens(self, modality: str, max_len: int) -> int:
        if modality == "video":  # one alone may fill a prompt
            return max_len
        return max(1, min(self.max_pixels // self.unit**2, max_len))

    def tower_places(self, modality: str, max_len: int, tokens: int) -> int:
        largest = self.most_tokens(modality, max_len)
        return max(1, tokens // largest) * largest * self.merge**2

    def tower_width(self, modality: str) -> tuple[int, int]:
        vision = self.config.get("vision_config") or {}
        hidden = int(vision.get("embed_dim", EMBED_DIM))
        return hidden, int(hidden * vision.get("mlp_ratio", MLP_RATIO))

    def tower_heads(self, modality: str) -> int:
        return int((self.config.get("vision_config") or {}).get("num_heads", HEADS))

    def placeholder(self, modality: str) -> str:
        if modality not in self.modalities:
            raise KeyError(modality)
        return f"<|{modality}_pad|>"

    def item_text(self, modality: str) -> str:
        return f"<|vision_start|>{self.placeholder(modality)}<|vision_end|>"

    def image_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height an image is resized to: whole merged patches, within the pixel range.

        Raises ValueError for a picture more than 200 times as long as wide.
        """
        return _resized(width, height, self.unit, self.min_pixels, self.max_pixels)

    def image_tokens(self, width: int, height: int) -> int:
        width, height = self.image_size(width, height)
        return width * height // self.unit**2

    def preprocess_image(self, image: Image.Image) -> Arrays:
        """`pixels` `[patches, 3, 1, patch, patch]`, uint8, and `image_grid_thw` `[1, 3]`."""
        size = self.image_size(*image.size)
        blocks = self._blocks(1, size, 1)
        fitted = image if size == image.size else image.resize(size, self._resample)
        self._cut(as_bytes(fitted), blocks[0, ..., 0, :, :])
        return self._cut_up("image", blocks, size)

    def sample_frames(self, total: int, fps: float, options: VideoOptions) -> list[int]:
        """As the `sample_frames` of transformers' Qwen2-VL video processor.

        A video too short for one temporal patch, which that refuses, gives all its frames.
        """
        settings, step = self._video, self.frames
        most = options.frames or int(settings.get("max_frames") or VIDEO_FRAMES[1])
        least = min(int(settings.get("min_frames") or VIDEO_FRAMES[0]), most)
        whole = min(most, total) // step * step
        if settings.get("num_frames") and options.fps is None:
            count = min(round(settings["num_frames"] / step) * step, whole)
        else:
            wanted = total / fps * (options.fps or settings.get("fps") or VIDEO_FPS)
            count = math.floor(min(max(wanted, least), whole) / step) * step
        if count < 1:
            return list(range(min(most, total)))
        # the processor's are torch's, which rounds to float32
        indices = (np.arange(count) * (total / count)).astype(np.float32).astype(int)
        return [index for index in indices.tolist() if index < total]

    def video_size(
        self, frames: int, width: int, height: int, options: VideoOptions
    ) -> tuple[int, int]:
        """Width and height that each of that many frames is resized to; ValueError as for images.

        Source: `resize` of transformers' Qwen2-VL video processor; `options.tokens` is its
        `max_video_tokens` with `cap_pixels_per_frame`.
        """
        least, most = _pixel_range(self._video, VIDEO_PIXELS)
        most = options.frame_pixels or most
        least = min(least, most)
        if options.tokens or self._video.get("cap_pixels_per_frame"):
            tokens = options.tokens or self._video.get("max_video_tokens") or VIDEO_TOKENS
            share = int(tokens * self.unit**2 * 0.9) * self.frames // frames
            most = max(min(most, share), int(least * 1.05))
        return _resized(width, height, self.unit, least, most)

    def video_tokens(self, frames: int, width: int, height: int, options: VideoOptions) -> int:
        width, height = self.video_size(frames, width, height, options)
        return math.ceil(frames / self.frames) * (width * height // self.unit**2)

    def preprocess_video(
        self, frames: Iterable[Image.Image], count: int, options: VideoOptions
    ) -> Arrays:
        """`pixels` `[patches, 3, frames, patch, patch]`, uint8, and `video_grid_thw` `[1, 3]`."""
        size, blocks = (0, 0), np.empty(0, np.uint8)
        for number, frame in enumerate(frames):
            if number == 0:
                size = self.video_size(count, *frame.size, options)
                blocks = self._blocks(math.ceil(count / self.frames), size, self.frames)
            slot = blocks[number // self.frames, ..., number % self.frames, :, :]
            self._cut(self._resized_frame(frame, size), slot)
        for missing in range((count - 1) % self.frames + 1, self.frames):
            blocks[-1, ..., missing, :, :] = blocks[-1, ..., missing - 1, :, :]
        return self._cut_up("video", blocks, size)

    def tower_inputs(self, item: MediaItem, upload: Upload = stay) -> dict[str, torch.Tensor]:
        """`pixel_values` or `pixel_values_videos` `[patches, 3 * frames * patch²]`, and grid."""
        normalise = self._normalise if item.modality == "image" else self._video_normalise
        pixels = normalise.apply(upload(item.tensors["pixels"]).float(), 1, upload)
        pixels = pixels.expand(-1, -1, self.frames, -1, -1).flatten(1)
        grid = f"{item.modality}_grid_thw"
        return {PIXELS[item.modality]: pixels, grid: item.tensors[grid]}

    def check_item(self, item: MediaItem) -> None:
        grid = fitting(item, f"{item.modality}_grid_thw", ("int64",), (1, 3))[0].tolist()
        check_length(item, self.embedding_tokens(item.modality, grid))
        if "embeds" not in item.tensors:
            frames = 1 if item.modality == "image" else self.frames
            patches = math.prod(grid), 3, frames, self.patch, self.patch
            fitting(item, "pixels", ("uint8",), patches)

    def embedding_grid(self, modality: str) -> str | None:
        return f"{modality}_grid_thw" if modality in self.modalities else None

    def embedding_tokens(self, modality: str, grid: Sequence[int] | None) -> int:
        if modality not in self.modalities:
            raise KeyError(modality)
        if grid is None or len(grid) != 3 or min(grid) < 1:
            raise ValueError("a grid has the three numbers time, rows and columns, all above 0")
        time, rows, columns = grid
        if modality == "image" and time != 1:
            raise ValueError("an image has one step in time")
        if rows % self.merge or columns % self.merge:
            raise ValueError(f"rows and columns must be multiples of {self.merge}")
        return time * rows * columns // self.merge**2

    def _blocks(self, steps: int, size: tuple[int, int], frames: int) -> NDArray[np.uint8]:
        """Room for the patches of pictures of that size, in the order of merged blocks.

        `[steps, block rows, block columns, rows, columns, 3, frames, patch, patch]`
        """
        width, height = (pixels // self.unit for pixels in size)
        inside = self.merge, self.merge, 3, frames, self.patch, self.patch
        return np.empty((steps, height, width, *inside), np.uint8)

    def _cut(self, pixels: Pixels, blocks: NDArray[np.uint8]) -> None:
        """A picture into `[block rows, block columns, rows, columns, 3, patch, patch]`."""
        rows, columns, row, column, channels, patch, _ = blocks.shape
        cut = pixels.reshape(rows, row, patch, columns, column, patch, channels)
        blocks[:] = cut.transpose(0, 3, 1, 4, 6, 2, 5)

    def _cut_up(self, modality: str, blocks: NDArray[np.uint8], size: tuple[int, int]) -> Arrays:
        """What pictures that are cut are sent as."""
        columns, rows = size[0] // self.patch, size[1] // self.patch
        return {
            "pixels": blocks.reshape(-1, *blocks.shape[5:]),
            f"{modality}_grid_thw": np.array([[len(blocks), rows, columns]], np.int64),
        }

    def _resized_frame(self, frame: Image.Image, size: tuple[int, int]) -> Pixels:
        """Resized as torchvision does it for transformers' processor."""
        if size == frame.size:
            return as_bytes(frame)
        cubic = CUBIC.get(self._video_resample)
        if cubic is None:
            return as_bytes(frame.resize(size, self._video_resample))
        return resized(as_bytes(frame), *size, cubic=cubic)

    def decoder(self, model: Any) -> nn.Module:
        return model.model.language_model

    def drop_towers(self, config: Any) -> None:
        config.vision_config.depth = 0

    def encode(
        self, model: Any, items: list[MediaItem], upload: Upload = stay
    ) -> list[torch.Tensor]:
        from transformers.vision_utils import get_vision_cu_seqlens

        pixels, places, grid = self._patches_of(model, items, upload)
        features = model.model.visual(
            pixels,
            grid_thw=grid,
            # on the host, where each layer asks for the lengths of its pictures three times
            cu_seqlens=get_vision_cu_seqlens(grid),
            position_ids=places,
        )
        return list(features.pooler_output.split([item.length for item in items]))

    def places(self, items: list[MediaItem]) -> int:
        return sum(item.length for item in items) * self.merge**2

    def tower_tensors(
        self, model: Any, items: list[MediaItem], upload: Upload = stay
    ) -> tuple[torch.Tensor, ...]:
        """Of each patch its pixels, row and column, and picture or frame, from 1 on."""
        import torch  # planning does without
        from transformers.vision_utils import get_vision_cu_seqlens

        pixels, places, grid = self._patches_of(model, items, upload)
        lengths = get_vision_cu_seqlens(grid).diff()
        segments = torch.arange(1, len(lengths) + 1).repeat_interleave(lengths)
        return pixels, places, upload(segments)

    def tower_work(self, model: Any, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """All patches as one picture, of which each sees its own segment.

        The tower has to attend by `VISION_ATTENTION`, which adds `between` to the scores.
        """
        import torch

        pixels, places, segments = tensors
        features = model.model.visual(
            pixels,
            grid_thw=torch.tensor([[1, 1, len(pixels)]]),  # nobody looks: the others are given
            cu_seqlens=torch.tensor([0, len(pixels)], dtype=torch.int32),
            position_ids=places,
            between=_between(segments, pixels.dtype),
        )
        embedded: torch.Tensor = features.pooler_output
        return embedded

    def _patches_of(
        self, model: Any, items: list[MediaItem], upload: Upload
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels, rows and columns of all patches, and on the host the grids of items."""
        import torch  # planning does without
        from transformers.vision_utils import get_vision_position_ids

        tower = model.model.visual
        inputs = [tuple(self.tower_inputs(item, upload).values()) for item in items]
        pixels, grid = (torch.cat(parts) for parts in zip(*inputs, strict=True))
        places = get_vision_position_ids(grid, tower.spatial_merge_size)
        return pixels.to(tower.dtype), upload(places), grid

    def positions(self, prompt_ids: list[int], media: list[MediaItem]) -> tuple[torch.Tensor, int]:
        """Multimodal rotary positions: time, row and column of placeholders, text counting on.

        Source: Qwen2-VL paper, section 2.1; text after a video goes on from its rows and columns,
        not from its time, as in transformers 5.
        """
        import torch  # planning does without

        positions = torch.arange(len(prompt_ids)).repeat(3, 1)
        offset = 0
        for item in sorted(media, key=lambda item: item.start):
            _, rows, columns = item.tensors[f"{item.modality}_grid_thw"][0].tolist()
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


def _between(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores so that each of `[patches]` sees those of its own segment alone."""
    import torch  # planning does without

    apart = segments[:, None] != segments
    scores = torch.zeros(apart.shape, dtype=dtype, device=segments.device)
    return scores.masked_fill_(apart, -torch.inf)


def _resampling(options: dict[str, Any]) -> Image.Resampling:
    return Image.Resampling(options.get("resample", Image.Resampling.BICUBIC))


def _resized(width: int, height: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """Source: `smart_resize` of transformers' Qwen2-VL image processor."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"it is more than {MAX_ASPECT_RATIO} times as long as wide")
    columns, rows = round(width / unit), round(height / unit)
    area = columns * rows * unit * unit
    if area > most:
        shrink = math.sqrt(width * height / most)
        columns = max(1, math.floor(width / shrink / unit))
        rows = max(1, math.floor(height / shrink / unit))
    elif area < least:
        grow = math.sqrt(least / (width * height))
        columns = math.ceil(width * grow / unit)
        rows = math.ceil(height * grow / unit)
    return columns * unit, rows * unit


def _pixel_range(options: dict[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    size = options.get("size") or {}
    least = options.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels")
    most = options.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels")
    return int(least or default[0]), int(most or default[1])
