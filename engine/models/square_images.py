"""Pictures brought to one size, each of the same number of tokens: CLIP and SigLIP towers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from engine.models.family import Family
from engine.models.pixels import Normaliser
from engine.request import MediaItem


class SquareImages(Family):
    """What families with such a tower share; each sets the two attributes when made."""

    modalities: ClassVar[tuple[str, ...]] = ("image",)

    tokens: int  # of every picture
    normalise: Normaliser

    def image_tokens(self, width: int, height: int) -> int:
        return self.tokens

    def tower_inputs(self, item: MediaItem, device: torch.device) -> dict[str, torch.Tensor]:
        """`pixel_values` `[1, 3, height, width]` of an item's `pixels` `[1, height, width, 3]`."""
        pixels = item.tensors["pixels"].to(device).permute(0, 3, 1, 2).float()
        return {"pixel_values": self.normalise.apply(pixels.contiguous(), dim=1)}

    def embedding_tokens(self, modality: str, grid: Sequence[int] | None) -> int:
        if modality != "image":
            raise KeyError(modality)
        return self.tokens

    def decoder(self, model: Any) -> nn.Module:
        return model.model.language_model

    def drop_towers(self, config: Any) -> None:
        config.vision_config.num_hidden_layers = 0

    def encode(self, model: Any, items: list[MediaItem]) -> list[torch.Tensor]:
        tower = model.model.vision_tower
        pixels = torch.cat(
            [self.tower_inputs(item, tower.device)["pixel_values"] for item in items]
        )
        return list(model.get_image_features(pixels.to(tower.dtype)).pooler_output)
