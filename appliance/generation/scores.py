"""Scores of pairs of texts: what is made of a cross-encoder's number."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.models.family import Family

IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"


@dataclass(slots=True, frozen=True)
class ScoreSettings:
    """Whether a score is brought between 0 and 1, as the model was trained."""

    sigmoid: bool = True

    @classmethod
    def of(cls, family: Family) -> ScoreSettings:
        """As sentence-transformers' CrossEncoder reads config.json.

        Raises ValueError for a model of several labels, or of another function.
        """
        config = family.config
        labels = config.get("id2label")
        count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
        if count != 1:
            raise ValueError(f"a reranker has one score, and this model has {count} labels")
        written = config.get("sentence_transformers")
        name = written.get("activation_fn") if isinstance(written, dict) else None
        name = name or config.get("sbert_ce_default_activation_function") or SIGMOID
        if name not in (IDENTITY, SIGMOID):
            raise ValueError(
                "config.json names an activation_fn that is neither Sigmoid nor Identity"
            )
        return cls(name == SIGMOID)

    def finished(self, logit: float) -> float:
        """The score of a logit."""
        if not self.sigmoid:
            return logit
        if logit >= 0:
            return 1 / (1 + math.exp(-logit))
        return math.exp(logit) / (1 + math.exp(logit))
