"""Towers by replay: a few pictures, for which launching takes longer than computing.

A recording has so many places, patches or whole pictures, and takes any items that fit in them;
places too many are zeros and belong to nobody. What it reads and what it gives lies in memory that
all recordings share and no pool has. They are made before requests are taken: which pictures come
decides about values alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from engine.device.device import Graph, Recorder
from engine.errors import EngineError
from engine.models.family import Family
from engine.models.item_tensors import tensors_of
from engine.request import MediaItem
from engine.running.recordings import Recordings

SMALL = 56  # pixels a side of a picture that every family takes


class TowerGraphs:
    """What `Family.encode` gives, by recordings for as many places as `sizes` say."""

    def __init__(
        self, family: Family, model: Any, device: Recorder, *, pool: Any, sizes: Sequence[int]
    ) -> None:
        """`pool` has what is only used inside of each recording."""
        self._family = family
        self._model = model
        self._device = device
        self._pool = pool
        self._sizes = sizes
        self._recordings: Recordings[Graph] = Recordings(
            device, "a tower", "engine.tower_graphs=false", strict=True
        )
        sample, most = small_picture(family), max(sizes)
        self._inputs = tuple(
            tensor.new_zeros(most, *tensor.shape[1:])
            for tensor in family.tower_tensors(model, [sample], device.upload)
        )
        self._outputs = torch.zeros_like(family.tower_work(model, self._inputs))
        if len(self._outputs) * family.places([sample]) != most * sample.length:
            raise EngineError(
                f"the tower gives {len(self._outputs)} embeddings of {most} places: set "
                "engine.tower_graphs=false"
            )

    def record(self, progress: Callable[[float], None], *, largest: bool) -> None:
        """Record all sizes, or the largest. Raises EngineError where that cannot be."""
        self._recordings.record(self._sizes, self._record, progress, largest=largest)

    @property
    def sizes(self) -> list[int]:
        return self._recordings.sizes

    def encode(self, items: list[MediaItem]) -> list[torch.Tensor]:
        """Embeddings of each item, `[item.length, hidden]`."""
        family, places = self._family, self._family.places(items)
        size = self._recordings.size_for(places)
        if size is None:
            return family.encode(self._model, items, self._device.upload)
        tensors = family.tower_tensors(self._model, items, self._device.upload)
        for place, tensor in zip(self._inputs, tensors, strict=True):
            place[:places].copy_(tensor)
            if places < size:
                place[places:size].zero_()
        self._recordings[size].replay()
        lengths = [item.length for item in items]
        # a copy: the next replay writes there, and the encoder cache keeps what it is given
        return list(self._outputs[: sum(lengths)].clone().split(lengths))

    def _record(self, size: int) -> Graph:
        inputs = tuple(tensor[:size] for tensor in self._inputs)

        def work() -> None:
            embedded = self._family.tower_work(self._model, inputs)
            self._outputs[: len(embedded)].copy_(embedded)

        return self._device.capture(work, self._pool)


def small_picture(family: Family) -> MediaItem:
    """An item that tells what tensors a family's pictures have."""
    tensors = tensors_of(family.preprocess_image(Image.new("RGB", (SMALL, SMALL))))
    return MediaItem("image", b"", 0, family.image_tokens(SMALL, SMALL), tensors)
