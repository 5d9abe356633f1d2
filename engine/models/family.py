"""What a model family has to say about itself; each family is one small file beside this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from engine.request import MediaItem


class Family:
    """A checkpoint's family: the light half needs only its folder, the heavy half the loaded transformers model.

    The light half (token counts, preprocessing) runs in the server process and in media workers and must not import
    transformers. The heavy half (tower, positions) runs in the engine.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    modalities: ClassVar[tuple[str, ...]] = ()

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())

    # -- light half -----------------------------------------------------------------------------------------------

    def placeholder(self, modality: str) -> str:
        """The special token that stands for one embedding of `modality` (repeated once an embedding)."""
        raise KeyError(modality)

    def item_text(self, modality: str) -> str:
        """What the model's chat template writes for one item, placeholder included, before expansion."""
        return self.placeholder(modality)

    def image_tokens(self, width: int, height: int) -> int:
        """Placeholders that an image of this size takes. Raises ValueError for a size the family cannot take."""
        raise KeyError("image")

    def preprocess_image(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Tensors of one RGB image, float32, equal to those of the transformers processor."""
        raise KeyError("image")

    # -- heavy half -----------------------------------------------------------------------------------------------

    def text_config(self) -> dict[str, Any]:
        """The decoder's part of config.json."""
        return self.config.get("text_config", self.config)

    def decoder(self, model: nn.Module) -> nn.Module:
        """The stack that maps `inputs_embeds` to final hidden states."""
        return model.model

    def drop_towers(self, config: Any) -> None:
        """Change a transformers configuration so that the model is built without its towers' layers."""

    def encode(self, model: nn.Module, items: list[MediaItem]) -> list[torch.Tensor]:
        """Embeddings of each item, `[item.length, hidden]`, in the model's dtype."""
        raise KeyError(items[0].modality)

    def positions(self, prompt_ids: list[int], media: list[MediaItem]) -> tuple[torch.Tensor, int]:
        """Prompt positions `[rows, tokens]` (1 row, or 3 for M-RoPE) and the offset for tokens after the prompt.

        The token at index i after the prompt has position i + offset on every row.
        """
        return torch.arange(len(prompt_ids))[None], 0
