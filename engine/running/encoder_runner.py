"""A batch of whole prompts through a model that only encodes."""

from __future__ import annotations

import torch

from engine.layers.encoder import TransformersEncoder
from engine.models.loader import LoadedModel
from engine.options import EngineOptions
from engine.running.media import Media
from engine.running.platform import Platform
from engine.running.runner import Computed
from engine.scheduling.batch import Batch


class EncoderRunner:
    """What `Runner` is to an engine, of a model that keeps nothing of a prompt and has no head.

    Its pages are numbers by which the scheduler counts what runs at once: nothing lies in them.
    """

    lost = False

    def __init__(self, loaded: LoadedModel, options: EngineOptions, platform: Platform) -> None:
        self.loaded = loaded
        self.pages = options.pages
        self.media = Media(loaded, platform, 0)
        self.latest = torch.zeros(0, dtype=torch.int64)
        self._platform = platform
        self._encoder = TransformersEncoder(loaded.stack)

    @property
    def vocabulary(self) -> int:
        return self.loaded.vocabulary

    @property
    def hidden(self) -> int:
        """Width of its vectors."""
        return int(self.loaded.stack.config.hidden_size)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Computed:
        """Compute the prompts of a batch, each of which is in it from its first token to its last.

        No logits come of it.
        """
        token_types = torch.zeros_like(batch.token_ids)
        for item, first in zip(batch.slices, batch.query_start.tolist(), strict=False):
            assert item.start == 0
            assert item.last
            second = item.sequence.request.second
            if second is not None:
                token_types[first + second : first + item.end] = 1
        upload = self._platform.upload
        hidden = self._encoder(
            upload(batch.token_ids),
            upload(batch.positions),
            upload(token_types),
            [item.count for item in batch.slices],
        )
        wanted = hidden[upload(batch.hidden_rows)]
        made = self.loaded.family.pooled_head(self.loaded.model, wanted)
        return Computed(hidden.new_empty(0, self.vocabulary), made)
