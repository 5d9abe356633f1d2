"""LLaVA-1.5: every picture becomes the same number of CLIP patches in front of a Llama."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from engine.models.pixels import CLIP_MEAN, Normaliser, as_bytes, processor_options
from engine.models.square_images import SquareImages
from engine.models.text_defaults import LLAMA

if TYPE_CHECKING:
    from engine.models.family import Arrays

# A resized picture this many times larger than its crop is resized only where it is kept.
WIDE = 4
MAX_PADDED_SIDE = 1 << 14
TOWER_LAYER = re.compile(r"(?:model\.)?vision_tower\..*\blayers\.(\d+)\.")


class Llava(SquareImages):
    """LLaVA-1.5 with a CLIP tower."""

    architectures: ClassVar[tuple[str, ...]] = ("LlavaForConditionalGeneration",)

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._options = processor_options(self.folder)
        self._resample = Image.Resampling(self._options.get("resample", Image.Resampling.BICUBIC))
        self.normalise = Normaliser(self._options)
        whole = self.config.get("vision_feature_select_strategy", "default") == "full"
        self.tokens = self.side**2 + whole

    def placeholder(self, modality: str) -> str:
        if modality != "image":
            raise KeyError(modality)
        return "<image>"

    def item_text(self, modality: str) -> str:
        return self.placeholder(modality) + "\n"

    def text_config(self) -> dict[str, Any]:
        return LLAMA | (self.config.get("text_config") or {})

    def image_tokens(self, width: int, height: int) -> int:
        if self._options.get("do_pad", False) and max(width, height) > MAX_PADDED_SIDE:
            raise ValueError(f"the image is longer than {MAX_PADDED_SIDE} pixels")
        return self.tokens

    def unread(self, name: str) -> bool:
        if (layer := TOWER_LAYER.match(name)) and (states := self._states):
            return int(layer[1]) >= max(1, *states)
        return False

    def trim_towers(self, config: Any) -> None:
        if states := self._states:
            config.vision_config.num_hidden_layers = layers = max(1, *states)
            ends = [state - layers - 1 for state in states]  # transformers takes 0 for none
            one = isinstance(config.vision_feature_layer, int)
            config.vision_feature_layer = ends[0] if one else ends

    @property
    def _states(self) -> list[int]:
        """Behind how many of CLIP's layers it is looked at; none where config.json is unclear.

        Other towers norm what their last layer gives, and so would behind a layer before it.
        """
        layers = self._vision.get("num_hidden_layers")
        chosen = self.config.get("vision_feature_layer", -2)
        chosen = chosen if isinstance(chosen, list) else [chosen]
        if (
            self._vision.get("model_type") != "clip_vision_model"
            or type(layers) is not int
            or layers < 1
            or not all(type(one) is int and -layers - 1 <= one <= layers for one in chosen)
        ):
            return []
        return [one % (layers + 1) for one in chosen]

    def preprocess_image(self, image: Image.Image) -> Arrays:
        """`pixels` `[1, height, width, 3]`, uint8: shorter side resized, the middle kept."""
        options = self._options
        if options.get("do_pad", False):
            image = _pad_to_square(image, options.get("image_mean", CLIP_MEAN))
        crop = _box(options.get("crop_size", 224)) if options.get("do_center_crop", True) else None
        if options.get("do_resize", True):
            size = _resized(image.size, options.get("size", {"shortest_edge": 224}))
            box = None
            if crop and size[0] * size[1] > WIDE * crop[0] * crop[1]:
                size, box = _kept(image.size, size, crop)
            image = image.resize(size, self._resample, box=box)
        if crop:
            left, top = (image.width - crop[0]) // 2, (image.height - crop[1]) // 2
            image = image.crop((left, top, left + crop[0], top + crop[1]))
        return {"pixels": as_bytes(image)[None]}


def _box(size: int | dict[str, int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return size["width"], size["height"]


def _resized(size: tuple[int, int], wanted: int | dict[str, int]) -> tuple[int, int]:
    if isinstance(wanted, int):
        wanted = {"shortest_edge": wanted}
    if "shortest_edge" not in wanted:
        return _box(wanted)
    edge, (width, height) = wanted["shortest_edge"], size
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def _kept(
    source: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int]
) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """Size of what a centre crop leaves of a resized picture, and where that lies in the source."""
    width, height = min(resized[0], crop[0]), min(resized[1], crop[1])
    left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    across, down = source[0] / resized[0], source[1] / resized[1]
    right, bottom = min(source[0], (left + width) * across), min(source[1], (top + height) * down)
    return (width, height), (left * across, top * down, right, bottom)


def _pad_to_square(image: Image.Image, mean: list[float] | tuple[float, ...]) -> Image.Image:
    side = max(image.size)
    if image.width == image.height:
        return image
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
