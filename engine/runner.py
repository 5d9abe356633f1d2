"""A batch through towers, decoder and head."""

from __future__ import annotations

import torch

from engine.attention.backend import AttentionBackend, KVCache
from engine.attention.cpu import CpuAttention
from engine.batch import Batch
from engine.decoder import Decoder, TransformersDecoder
from engine.encoder_cache import EncoderCache
from engine.errors import EngineError
from engine.fuse import FusedDecoder, fusible
from engine.kernels import TorchKernels
from engine.linear import linear_for
from engine.loader import LoadedModel
from engine.options import EngineOptions
from engine.request import MediaItem
from engine.scheduler import Slice


class Runner:
    """Owns the loaded model, the key-value cache and the encoder cache."""

    def __init__(self, loaded: LoadedModel, options: EngineOptions) -> None:
        self.loaded = loaded
        self.encoder_cache = EncoderCache(options.encoder_cache_bytes)
        self._device = torch.device(options.device)
        cache = KVCache(loaded.shape, options.pages, options.page_size, loaded.dtype, self._device)
        self._backend: AttentionBackend = CpuAttention(loaded.shape, cache)
        self._embed = loaded.model.get_input_embeddings()
        self._decoder: Decoder
        if options.fuse and fusible(loaded.stack):
            self._decoder = FusedDecoder(loaded.stack, loaded.shape, self._backend, TorchKernels())
        else:
            self._decoder = TransformersDecoder(loaded.stack, self._backend)
        self._head = linear_for(loaded.model.get_output_embeddings().weight.data)

    @property
    def vocabulary(self) -> int:
        return self._head.out_features

    @property
    def hidden(self) -> int:
        """Width of the decoder's input embeddings."""
        return int(self._embed.weight.shape[1])

    @torch.inference_mode()
    def run(self, batch: Batch) -> torch.Tensor:
        """Store the batch's keys and values; logits `[logit_rows, vocabulary]` in float32."""
        self._backend.plan(batch)
        embeddings = self._embed(batch.token_ids.to(self._device))
        self._place_media(batch, embeddings)
        hidden = self._decoder(embeddings, batch.positions.to(self._device))
        if len(batch.logit_rows) != batch.tokens:
            hidden = hidden.index_select(0, batch.logit_rows.to(self._device))
        logits: torch.Tensor = self._head(hidden)
        return logits.float()

    def _place_media(self, batch: Batch, embeddings: torch.Tensor) -> None:
        """Overwrite placeholder embeddings by their items', as far as each slice reaches."""
        wanted: dict[bytes, MediaItem] = {}
        places: list[tuple[MediaItem, Slice, int]] = []
        for item, offset in zip(batch.slices, batch.query_start.tolist(), strict=False):
            for media in item.sequence.media:
                if media.start < item.end and media.end > item.start:
                    places.append((media, item, offset))
                    wanted[media.digest] = media
        if not places:
            return
        known = {
            digest: media.tensors["embeds"].to(embeddings)  # need no tower and no cache
            for digest, media in wanted.items()
            if "embeds" in media.tensors
        }
        for digest in wanted:
            cached = None if digest in known else self.encoder_cache.get(digest)
            if cached is not None:
                known[digest] = cached
        missing = [media for digest, media in wanted.items() if digest not in known]
        if missing:
            for media, encoded in zip(missing, self._encode(missing), strict=True):
                known[media.digest] = encoded
                self.encoder_cache.put(media.digest, encoded)
        for media, item, offset in places:
            first, last = max(media.start, item.start), min(media.end, item.end)
            rows = slice(offset + first - item.start, offset + last - item.start)
            embeddings[rows] = known[media.digest][first - media.start : last - media.start]

    def _encode(self, items: list[MediaItem]) -> list[torch.Tensor]:
        encoded = self.loaded.family.encode(self.loaded.model, items)
        for item, embeddings in zip(items, encoded, strict=True):
            if len(embeddings) != item.length:
                raise EngineError(
                    f"an item of {item.length} placeholders gave {len(embeddings)} embeddings"
                )
        return encoded
