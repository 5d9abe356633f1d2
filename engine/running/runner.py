"""A batch through towers, decoder and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from engine.attention.backend import CrossAttention, KVCache, RecordableAttention
from engine.device.device import Recorder
from engine.errors import EngineError
from engine.layers.decoder import DecoderInput
from engine.layers.fuse import FusedDecoder
from engine.layers.native import NativeHead
from engine.memory.card_memory import tower_sizes
from engine.models.loader import LoadedModel, Progress
from engine.native.block_weight import tensor_of
from engine.options import EngineOptions
from engine.parallel import orders
from engine.parallel.ranks import Ranks
from engine.parallel.shard import VocabularyPart
from engine.running.decoders import decoder_for
from engine.running.graphs import DecodeGraphs
from engine.running.media import Media, media_places, state_places
from engine.running.platform import Platform
from engine.running.prefill_graphs import PrefillGraphs
from engine.running.tower_graphs import TowerGraphs
from engine.sampling.token_counts import resolve
from engine.scheduling.batch import Batch
from engine.scheduling.cross_batch import CrossBatch, cross_batch


def no_progress(phase: str, fraction: float) -> None:
    """`Progress` that goes nowhere."""


class Computed:
    """What a batch gave; it may lie where the next run writes its own.

    `hidden` are final states `[hidden rows, hidden]`, or None of what was recorded; `aligned` the
    attention across of each slice of which it is wanted, `[heads, tokens, states]`. Where there is
    a way to the `likeliest` tokens without logits, these are computed when they are asked for.
    """

    def __init__(
        self,
        logits: Callable[[], torch.Tensor] | torch.Tensor,
        hidden: torch.Tensor | None = None,
        likeliest: Callable[[], torch.Tensor] | None = None,
        aligned: Sequence[torch.Tensor] = (),
    ) -> None:
        self._logits = logits
        self.aligned = aligned
        self.hidden = hidden
        self.likeliest = likeliest

    @property
    def logits(self) -> torch.Tensor:
        """`[logit rows, vocabulary]`, float32."""
        if not isinstance(self._logits, torch.Tensor):
            self._logits = self._logits()
        return self._logits


class Runner:
    """Owns the loaded model and the key-value cache.

    Of several ranks each has one. What rank 0's does, the others' do by its orders.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        options: EngineOptions,
        platform: Platform,
        pages: int,
        ranks: Ranks | None = None,
    ) -> None:
        self.loaded = loaded
        self.media = Media(loaded, platform, options.encoder_cache_bytes)
        self.latest = torch.zeros(  # tokens chosen last; those in flight refer to its rows
            options.max_sequences, dtype=torch.int64, device=platform.device
        )
        self._options = options
        self._platform = platform
        self._ranks = ranks
        self._follows = ranks is not None and ranks.rank > 0
        self.lost = False  # whether the ranks are out of step: nothing can be computed any more
        self._graphs: DecodeGraphs | None = None
        self._prefill_graphs: PrefillGraphs | None = None
        self._states = loaded.family.state_sizes()
        self._cache = self._new_cache(pages)
        self._backend = platform.attention(
            loaded.shape, self._cache, loaded.dtype, options.prefill_attention
        )
        table = loaded.model.get_input_embeddings()
        self._embed = table if ranks is None else VocabularyPart(table.weight.data, ranks.rank)
        self._across = self._attention_across()
        self._decoder = decoder_for(loaded, options, platform, self._backend, ranks, self._across)
        last = loaded.model.get_output_embeddings().weight
        self._head = platform.kernels().head(tensor_of(last))

    @property
    def vocabulary(self) -> int:
        return self.loaded.vocabulary

    @property
    def hidden(self) -> int:
        """Width of the decoder's input embeddings."""
        return int(self._embed.weight.shape[1])

    @property
    def _position_rows(self) -> int:
        """One, or three for M-RoPE."""
        return len(self.loaded.family.positions([0], [])[0])

    @property
    def pages(self) -> int:
        """Pages that sequences may use."""
        return self._cache.pages

    @property
    def page_bytes(self) -> int:
        """What one page takes in all layers."""
        return self._cache.page_bytes

    def store(self, pages: int) -> None:
        """Have a cache of that many pages, empty. Nothing may have been recorded."""
        self._order(orders.order(orders.Kind.STORE, pages))
        self._backend.release()
        del self._cache
        self._cache = self._new_cache(pages)
        self._backend.store(self._cache)

    @torch.inference_mode()
    def record(self, progress: Progress = no_progress, *, largest: bool = False) -> None:
        """Record decoding, and what else the options want; none is needed for it to work.

        Of each all sizes, or the largest, which tells what memory they take.
        """
        if not isinstance(self._backend, RecordableAttention):
            raise EngineError("this device's attention cannot be recorded: set engine.graphs=false")
        assert isinstance(self._platform, Recorder)
        self._order(orders.order(orders.Kind.RECORD, largest))
        options, pool = self._options, self._platform.graph_pool()
        self._graphs = self._decode_graphs(self._backend, pool)
        kinds: list[DecodeGraphs | PrefillGraphs | TowerGraphs] = [self._graphs]
        if options.prefill_graphs:
            self._prefill_graphs = self._graphs_of_prompts(self._backend, pool)
            kinds.append(self._prefill_graphs)
        if options.tower_graphs and not self._follows:  # rank 0 alone has towers
            self.media.graphs = self._graphs_of_towers(self._platform, pool)
            kinds.append(self.media.graphs)
        for done, kind in enumerate(kinds):

            def progressed(fraction: float, done: int = done) -> None:
                progress("preparing", (done + fraction) / len(kinds))

            kind.record(progressed, largest=largest)

    def _decode_graphs(self, backend: RecordableAttention, pool: Any) -> DecodeGraphs:
        options = self._options
        pages = -(-options.max_len // options.page_size)
        return DecodeGraphs(
            backend,
            self._next_logits,
            pool=pool,
            limit=options.max_sequences,
            max_pages=options.max_sequences * pages,
            position_rows=self._position_rows,
            vocabulary=self._head.out_features if self._follows else self.vocabulary,
            strict=self._ranks is not None,  # one rank replays what the others run: out of step
        )

    def _graphs_of_prompts(self, backend: RecordableAttention, pool: Any) -> PrefillGraphs:
        assert isinstance(self._decoder, FusedDecoder)
        return PrefillGraphs(
            self._decoder,
            backend,
            self.loaded.shape,
            pool=pool,
            limit=self._options.prefill_graphs,
            hidden=self.hidden,
            position_rows=self._position_rows,
            dtype=self.loaded.dtype,
        )

    def _graphs_of_towers(self, device: Recorder, pool: Any) -> TowerGraphs:
        loaded = self.loaded
        sizes = tower_sizes(loaded.family, self._options, self._options.max_len)
        return TowerGraphs(loaded.family, loaded.model, device, pool=pool, sizes=sizes)

    def forget(self) -> None:
        """Drop what was recorded."""
        self._order(orders.order(orders.Kind.FORGET))
        self._graphs = self._prefill_graphs = self.media.graphs = None

    @torch.inference_mode()
    def run(self, batch: Batch) -> Computed:
        """Store the batch's keys and values, and compute what is wanted of its rows."""
        places = media_places(batch)
        across = None
        if self._states is not None:
            across = cross_batch(batch, self._states.page)
        # before the other ranks start: it may fail alone
        wanted = places + state_places(across.fresh if across is not None else [])
        found = self.media.embeddings(wanted, self._embed.weight)
        media, states = found[: len(places)], [values for _, values in found[len(places) :]]
        if self._ranks is None:
            return self._run(batch, media, across=across, states=states)
        token_ids = batch.token_ids.clone()
        for place in places:
            token_ids[place.rows] = self.vocabulary  # no rank's; the sum has them from here
        try:
            self._order(orders.run_order(batch, token_ids, eager=bool(media)))
            return self._run(batch, media)
        except Exception:
            self.lost = True
            raise

    @torch.inference_mode()
    def follow(self, batch: Batch, eager: bool) -> None:
        """Do a rank's part of what rank 0 runs."""
        self._run(batch, [], eager)

    def _order(self, message: bytes) -> None:
        if self._ranks is not None and not self._follows:
            self._ranks.order(message)

    def _run(
        self,
        batch: Batch,
        media: list[tuple[slice, torch.Tensor]],
        eager: bool = False,
        across: CrossBatch | None = None,
        states: Sequence[torch.Tensor] = (),
    ) -> Computed:
        eager = eager or bool(media)
        if self._graphs is not None and not eager and self._graphs.fits(batch):
            return Computed(self._graphs.run(batch))
        self._backend.plan(batch)
        if self._across is not None and across is not None:
            self._across.plan(across)
        upload = self._platform.upload
        decoder = self._prefill_graphs or self._decoder
        token_ids, positions = upload(batch.token_ids), upload(batch.positions)
        embedded = self._embedded(token_ids, positions, media)
        if states:
            embedded = replace(embedded, states=torch.cat(list(states)))
        hidden = decoder(embedded)
        rows = batch.hidden_rows
        # of none, no view: it would keep all of the step's states in memory
        pooled = hidden[upload(rows)] if len(rows) else hidden.new_empty(0, hidden.shape[1])
        if len(batch.logit_rows) != batch.tokens:
            hidden = hidden.index_select(0, upload(batch.logit_rows))
        head = self._head
        # a cap may make two logits one, of which another is the first
        plain = self.loaded.logit_cap is None and self._ranks is None and self._across is None
        if isinstance(head, NativeHead) and plain:
            return Computed(lambda: head(hidden), pooled, lambda: head.likeliest(hidden))
        aligned = () if self._across is None else self._across.aligned()
        return Computed(self._logits(hidden).float(), pooled, aligned=aligned)

    def _next_logits(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits of every row of a batch without media, as recordings compute them."""
        return self._logits(self._decoder(self._embedded(token_ids, positions)))

    def _embedded(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        media: Sequence[tuple[slice, torch.Tensor]] = (),
    ) -> DecoderInput:
        ranks = self._ranks
        if self._platform.overlaps:
            if ranks is not None:
                ranks.share(self.latest)
            token_ids = resolve(token_ids, self.latest)
        embeddings = self._embed(token_ids)
        for rows, embedded in media:
            embeddings[rows] = embedded
        if ranks is not None:
            ranks.sum(embeddings)
        return DecoderInput(embeddings, positions)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._head(hidden)
        cap = self.loaded.logit_cap
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        if self._ranks is not None and len(logits):
            logits = self._ranks.gather(logits)[:, : self.vocabulary]
        return logits

    def _attention_across(self) -> CrossAttention | None:
        """Over a cache of the planned size: what is measured later is the room for tokens."""
        layers, sizes = self.loaded.cross, self._states
        if layers is None or sizes is None:
            return None
        cache = KVCache(
            layers.shape,
            self._options.state_pages,
            sizes.page,
            self.loaded.dtype,
            self._platform.device,
        )
        return self._platform.attention_across(layers.shape, cache)

    def _new_cache(self, pages: int) -> KVCache:
        options, shape = self._options, self.loaded.shape
        dtype = getattr(torch, options.kv_dtype) if options.kv_dtype else self.loaded.dtype
        return KVCache(shape, pages, options.page_size, dtype, self._platform.device)
