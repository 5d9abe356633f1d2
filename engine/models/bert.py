"""BERT: encoders that attend both ways, and make a vector or a score of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from engine.models.family import Family

if TYPE_CHECKING:
    import torch


class Bert(Family):
    """Sentence encoders: BertModel, without the layer that makes of its first token a class."""

    architectures: ClassVar[tuple[str, ...]] = ("BertModel",)
    encoder_only: ClassVar[bool] = True

    def model_settings(self) -> dict[str, Any]:
        return {"add_pooling_layer": False}

    def unread(self, name: str) -> bool:
        return name.removeprefix("bert.").startswith(("pooler.", "embeddings.position_ids"))

    def decoder(self, model: Any) -> Any:
        return model


class BertClassifier(Family):
    """Cross-encoders: the first token's state of two texts in one prompt becomes scores."""

    architectures: ClassVar[tuple[str, ...]] = ("BertForSequenceClassification",)
    encoder_only: ClassVar[bool] = True
    classifies: ClassVar[bool] = True

    def unread(self, name: str) -> bool:
        return name == "bert.embeddings.position_ids"

    def decoder(self, model: Any) -> Any:
        return model.bert

    def pooled_head(self, model: Any, states: torch.Tensor) -> torch.Tensor:
        """Logits `[rows, labels]`."""
        logits: torch.Tensor = model.classifier(model.bert.pooler(states[:, None]))
        return logits
