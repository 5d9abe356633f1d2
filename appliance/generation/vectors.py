"""Vectors of prompts: what of the model's states they are, and how they are handed out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy

from appliance.config.schema import VectorsConfig
from appliance.errors import bad_request
from engine.models.family import Family
from engine.request import Pooling


@dataclass(slots=True, frozen=True)
class VectorSettings:
    """How a model's vectors are made; they may be cut to one of `lengths`, or to any if None."""

    pooling: Pooling
    normalize: bool
    width: int
    lengths: tuple[int, ...] | None = ()

    @classmethod
    def of(cls, config: VectorsConfig, family: Family) -> VectorSettings:
        """As configured. Raises ValueError for lengths that the model's vectors do not have."""
        pooling = cast(Pooling, config.pooling)  # one of the key's choices
        width = int(family.text_config()["hidden_size"])
        lengths = config.dimensions
        if lengths is None:
            lengths = family.config.get("matryoshka_dimensions")
            if not lengths and family.config.get("is_matryoshka"):
                return cls(pooling, config.normalize, width, None)
        lengths = lengths or []
        wrong = [one for one in lengths if type(one) is not int or not 1 <= one <= width]
        if wrong:
            raise ValueError(
                f"embeddings.dimensions: vectors of this model have {width} numbers, and cannot be "
                f"cut to {wrong[0]}"
            )
        return cls(pooling, config.normalize, width, tuple(sorted(lengths)))

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raise ApplianceError 400 for a length that vectors of this model are not cut to."""
        if dimensions in (None, self.width):
            return
        if self.lengths is None:
            allowed, fits = f"from 1 to {self.width}", 1 <= dimensions <= self.width
        else:
            whole = (*self.lengths, self.width)
            allowed, fits = " or ".join(map(str, sorted({*whole}))), dimensions in whole
        if not fits:
            raise bad_request(
                f"'dimensions' must be {allowed}: vectors of this model mean nothing when they are "
                "cut to another length.",
                "dimensions",
                "invalid_value",
            )

    def finished(
        self, vector: numpy.ndarray, dimensions: int | None, normalize: bool | None
    ) -> numpy.ndarray:
        """A pooled vector cut, and then brought to length 1 unless that is not wanted."""
        cut = vector[:dimensions]
        if not (self.normalize if normalize is None else normalize):
            return cut
        length = float(numpy.linalg.norm(cut))
        return cut / numpy.float32(max(length, 1e-12))  # as torch.nn.functional.normalize
