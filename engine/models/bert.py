"""BERT: encoders that attend both ways and make a vector of a prompt, as sentence encoders do."""

from __future__ import annotations

from typing import Any, ClassVar

from engine.models.family import Family


class Bert(Family):
    """Transformers' BertModel, without the layer that pools its first token for classifiers."""

    architectures: ClassVar[tuple[str, ...]] = ("BertModel",)
    encoder_only: ClassVar[bool] = True

    def model_settings(self) -> dict[str, Any]:
        return {"add_pooling_layer": False}

    def unread(self, name: str) -> bool:
        return name.removeprefix("bert.").startswith(("pooler.", "embeddings.position_ids"))

    def decoder(self, model: Any) -> Any:
        return model
