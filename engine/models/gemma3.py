"""Gemma 3: every picture becomes the same number of SigLIP tokens, which attend both ways."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from engine.errors import ModelUnsupported
from engine.models.pixels import Normaliser, as_bytes, processor_options
from engine.models.square_images import SquareImages
from engine.models.text_defaults import GEMMA3

if TYPE_CHECKING:
    from engine.models.family import Arrays

# Defaults of transformers' image processor, where they are not those of CLIP's.
PROCESSOR = {"image_mean": 0.5, "image_std": 0.5, "size": {"height": 224, "width": 224}}


class Gemma3(SquareImages):
    """Gemma 3 with a SigLIP tower; Gemma 3 without one is of the family `Text`.

    Pictures are not panned and scanned: transformers' processor does so only when asked.
    """

    architectures: ClassVar[tuple[str, ...]] = ("Gemma3ForConditionalGeneration",)
    both_ways: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        given = processor_options(self.folder)  # published with null for what is left open
        options: dict[str, Any] = PROCESSOR | {
            name: given[name] for name in given if given[name] is not None
        }
        if options.get("do_pan_and_scan", False) or not options.get("do_resize", True):
            raise ModelUnsupported(
                "Gemma 3 takes each picture whole and resized: its preprocessor_config.json must "
                "not set do_pan_and_scan to true or do_resize to false"
            )
        self._size = options["size"]["width"], options["size"]["height"]
        self._resample = Image.Resampling(options.get("resample", Image.Resampling.BILINEAR))
        self.normalise = Normaliser(options)
        self.tokens = int(self.config.get("mm_tokens_per_image", 256))

    def placeholder(self, modality: str) -> str:
        if modality != "image":
            raise KeyError(modality)
        return "<image_soft_token>"

    def marker(self, modality: str) -> str:
        if modality != "image":
            raise KeyError(modality)
        return "<start_of_image>"

    def spelled_out(self, modality: str) -> str:
        """As transformers' Gemma3Processor replaces the marker before it tokenizes."""
        return f"\n\n{self.marker(modality)}{self.placeholder(modality)}<end_of_image>\n\n"

    def text_config(self) -> dict[str, Any]:
        return GEMMA3 | (self.config.get("text_config") or {})

    def preprocess_image(self, image: Image.Image) -> Arrays:
        """`pixels` `[1, height, width, 3]`, uint8, of the tower's size whatever the picture's."""
        return {"pixels": as_bytes(image.resize(self._size, self._resample))[None]}
