"""Pictures brought to one size, each of the same number of tokens: CLIP and SigLIP towers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from engine.models.family import Family, stay
from engine.models.item_tensors import check_length, fitting
from engine.models.pixels import Normaliser
from engine.request import MediaItem

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.models.family import Upload

IMAGE_SIZE, PATCH, HIDDEN, HEADS = 336, 14, 1024, 16  # of CLIP-L, where config.json leaves them out


class SquareImages(Family):
    """What families with such a tower share; each sets the two attributes when made."""

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    tower_prefixes: ClassVar[tuple[str, ...]] = (
        "vision_tower.",
        "vision_model.",
        "multi_modal_projector.",
    )

    recorded_places: ClassVar[tuple[int, ...]] = (1, 2, 4)  # pictures

    tokens: int  # of every picture
    normalise: Normaliser

    @property
    def side(self) -> int:
        """Patches along each side of a picture."""
        vision = self._vision
        return int(vision.get("image_size", IMAGE_SIZE)) // int(vision.get("patch_size", PATCH))

    @property
    def available(self) -> tuple[str, ...]:
        return self.modalities if self.config.get("vision_config") is not None else ()

    def most_tokens(self, modality: str, max_len: int) -> int:
        return self.tokens

    def tower_places(self, modality: str, max_len: int, tokens: int) -> int:
        patches = self.side**2 + 1  # CLIP's class token
        return max(1, tokens // self.tokens) * patches

    @property
    def patches_in_place(self) -> int:
        return self.side**2 + 1

    def tower_width(self, modality: str) -> tuple[int, int]:
        hidden = int(self._vision.get("hidden_size", HIDDEN))
        return hidden, int(self._vision.get("intermediate_size") or 4 * hidden)

    def tower_heads(self, modality: str) -> int:
        return int(self._vision.get("num_attention_heads", HEADS))

    @property
    def _vision(self) -> dict[str, Any]:
        return self.config.get("vision_config") or {}

    def image_tokens(self, width: int, height: int) -> int:
        return self.tokens

    def check_item(self, item: MediaItem) -> None:
        check_length(item, self.tokens)
        if "embeds" not in item.tensors:
            side = int(self._vision.get("image_size", IMAGE_SIZE))
            fitting(item, "pixels", ("uint8",), (1, side, side, 3))

    def tower_inputs(self, item: MediaItem, upload: Upload = stay) -> dict[str, torch.Tensor]:
        """`pixel_values` `[1, 3, height, width]` of an item's `pixels` `[1, height, width, 3]`."""
        pixels = upload(item.tensors["pixels"]).permute(0, 3, 1, 2).float()
        return {"pixel_values": self.normalise.apply(pixels.contiguous(), 1, upload)}

    def embedding_tokens(self, modality: str, grid: Sequence[int] | None) -> int:
        if modality != "image":
            raise KeyError(modality)
        return self.tokens

    def decoder(self, model: Any) -> nn.Module:
        return model.model.language_model

    def drop_towers(self, config: Any) -> None:
        config.vision_config.num_hidden_layers = 0

    def encode(
        self, model: Any, items: list[MediaItem], upload: Upload = stay
    ) -> list[torch.Tensor]:
        embedded = self.tower_work(model, self.tower_tensors(model, items, upload))
        return list(embedded.unflatten(0, (len(items), -1)))

    def places(self, items: list[MediaItem]) -> int:
        return len(items)

    def tower_tensors(
        self, model: Any, items: list[MediaItem], upload: Upload = stay
    ) -> tuple[torch.Tensor, ...]:
        """Pixels `[pictures, 3, height, width]`."""
        import torch  # planning does without

        pixels = torch.cat([self.tower_inputs(item, upload)["pixel_values"] for item in items])
        return (pixels.to(model.model.vision_tower.dtype),)

    def tower_work(self, model: Any, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        import torch

        (pixels,) = tensors
        return torch.cat(tuple(model.get_image_features(pixels).pooler_output))
