"""A batch through towers, decoder and head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.attention.backend import KVCache
from engine.attention.cpu import CpuAttention
from engine.attention.flashinfer import FlashInferAttention, check_supported
from engine.batch import Batch
from engine.decoder import Decoder, TransformersDecoder
from engine.device_sampler import resolve
from engine.encoder_cache import EncoderCache
from engine.errors import EngineError, ModelUnsupported
from engine.fuse import FusedDecoder, fusible
from engine.graphs import DecodeGraphs
from engine.kernels import FlashInferKernels, Kernels, TorchKernels
from engine.linear import linear_for
from engine.loader import LoadedModel, Progress
from engine.options import EngineOptions
from engine.platform import Platform
from engine.request import MediaItem


def no_progress(phase: str, fraction: float) -> None:
    """Report to nobody."""


class Runner:
    """Owns the loaded model, the key-value cache and the encoder cache."""

    def __init__(
        self, loaded: LoadedModel, options: EngineOptions, platform: Platform, pages: int
    ) -> None:
        self.loaded = loaded
        self.encoder_cache = EncoderCache(options.encoder_cache_bytes)
        self.latest = torch.zeros(  # tokens chosen last; those in flight refer to its rows
            options.max_sequences, dtype=torch.int64, device=platform.device
        )
        self._options = options
        self._platform = platform
        self._overlaps = platform.library is not None
        self._graphs: DecodeGraphs | None = None
        self._backend: CpuAttention | FlashInferAttention
        self._cache = self._new_cache(pages)
        if platform.library is None:
            if not loaded.shape.plain:
                raise ModelUnsupported(
                    "attention with windows or a score cap runs on a card only: engine.device=cuda"
                )
            kernels: Kernels = TorchKernels()
            self._backend = CpuAttention(loaded.shape, self._cache)
        else:
            if platform.limited:
                check_supported(loaded.shape, loaded.dtype)
            kernels = FlashInferKernels(platform.library)
            self._backend = FlashInferAttention(loaded.shape, self._cache, platform, loaded.dtype)
        self._embed = loaded.model.get_input_embeddings()
        self._decoder: Decoder
        if options.fuse and fusible(loaded.stack):
            self._decoder = FusedDecoder(loaded.stack, loaded.shape, self._backend, kernels)
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

    @property
    def pages(self) -> int:
        """Pages that sequences may use."""
        return self._cache.pages

    @property
    def page_bytes(self) -> int:
        """What one page takes in all layers."""
        return sum(layer[:, :1].nbytes for layer in self._cache.layers)

    def store(self, pages: int) -> None:
        """Have a cache of that many pages, empty. Nothing may have been recorded."""
        assert isinstance(self._backend, FlashInferAttention)
        self._backend.release()
        del self._cache
        self._cache = self._new_cache(pages)
        self._backend.store(self._cache)

    @torch.inference_mode()
    def record(self, sizes: list[int] | None = None, progress: Progress = no_progress) -> None:
        """Record decoding for batches of `sizes`; none are needed for it to work."""
        assert isinstance(self._backend, FlashInferAttention)
        options, family = self._options, self.loaded.family
        pages = -(-options.max_len // options.page_size)
        self._graphs = DecodeGraphs(
            self._backend,
            self._compute,
            limit=options.max_sequences,
            max_pages=options.max_sequences * pages,
            position_rows=len(family.positions([0], [])[0]),
            vocabulary=self.vocabulary,
        )
        self._graphs.record(sizes, lambda fraction: progress("preparing", fraction))

    def forget(self) -> None:
        """Drop what was recorded."""
        self._graphs = None

    @torch.inference_mode()
    def run(self, batch: Batch) -> torch.Tensor:
        """Store the batch's keys and values; logits `[logit_rows, vocabulary]` in float32.

        They may lie where the next run writes its own.
        """
        places = media_places(batch)
        if self._graphs is not None and not places and self._graphs.fits(batch):
            return self._graphs.run(batch)
        self._backend.plan(batch)
        upload = self._platform.upload
        logits = self._compute(
            upload(batch.token_ids),
            upload(batch.positions),
            places,
            None if len(batch.logit_rows) == batch.tokens else upload(batch.logit_rows),
        )
        return logits.float()

    def _compute(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        places: list[MediaPlace] | None = None,
        logit_rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self._overlaps:
            token_ids = resolve(token_ids, self.latest)
        embeddings = self._embed(token_ids)
        if places:
            self._place_media(places, embeddings)
        hidden = self._decoder(embeddings, positions)
        if logit_rows is not None:
            hidden = hidden.index_select(0, logit_rows)
        logits: torch.Tensor = self._head(hidden)
        return logits

    def _new_cache(self, pages: int) -> KVCache:
        options, shape = self._options, self.loaded.shape
        dtype = getattr(torch, options.kv_dtype) if options.kv_dtype else self.loaded.dtype
        return KVCache(shape, pages, options.page_size, dtype, self._platform.device)

    def _place_media(self, places: list[MediaPlace], embeddings: torch.Tensor) -> None:
        """Overwrite placeholder embeddings by their items', as far as each slice reaches."""
        wanted = {place.media.digest: place.media for place in places}
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
            for media, encoded in zip(missing, self.encode(missing), strict=True):
                known[media.digest] = encoded
                self.encoder_cache.put(media.digest, encoded)
        for place in places:
            embeddings[place.rows] = known[place.media.digest][place.part]

    @torch.inference_mode()
    def encode(self, items: list[MediaItem]) -> list[torch.Tensor]:
        encoded = self.loaded.family.encode(self.loaded.model, items)
        for item, embeddings in zip(items, encoded, strict=True):
            if len(embeddings) != item.length:
                raise EngineError(
                    f"an item of {item.length} placeholders gave {len(embeddings)} embeddings"
                )
        return encoded


@dataclass(slots=True, frozen=True)
class MediaPlace:
    """A part of a media item's embeddings and the rows of a batch that they belong in."""

    media: MediaItem
    part: slice
    rows: slice


def media_places(batch: Batch) -> list[MediaPlace]:
    """Where a batch's slices reach into media."""
    places = []
    for item, offset in zip(batch.slices, batch.query_start.tolist(), strict=False):
        for media in item.sequence.media:
            if media.start < item.end and media.end > item.start:
                first, last = max(media.start, item.start), min(media.end, item.end)
                part = slice(first - media.start, last - media.start)
                rows = slice(offset + first - item.start, offset + last - item.start)
                places.append(MediaPlace(media, part, rows))
    return places
