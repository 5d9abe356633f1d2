"""The engine: requests in, one step at a time, tokens out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from collections.abc import Sequence as Several
from functools import partial
from multiprocessing.connection import Connection

import torch

from engine.device.device import HostCopy
from engine.errors import (
    ConstraintFailed,
    DeviceLost,
    EngineError,
    ModelUnsupported,
    RequestRefused,
)
from engine.memory.mapped import load_stored, loader_for
from engine.models.item_tensors import FLOATS, fitting
from engine.models.loader import LoadedModel, Progress
from engine.options import EngineOptions
from engine.parallel.ranks import Ranks
from engine.parallel.shard import load_share
from engine.request import Alignment, MediaItem, Output, Request, TokenLogprob
from engine.running.flight import Choice, Flight
from engine.running.launcher import Launcher
from engine.running.platform import Platform, platform_for
from engine.running.preparation import Load, prepare
from engine.sampling.grammar import Grammars
from engine.scheduling.admission import admission, span_admission
from engine.scheduling.pace import Pace, turning_point
from engine.scheduling.page_pool import PagePool
from engine.scheduling.scheduler import Scheduler, Slice
from engine.scheduling.sequence import Sequence, in_flight
from engine.scheduling.state_pages import StatePages
from engine.stats import EngineStats

logger = logging.getLogger(__name__)

GRAMMAR_SECONDS = 0.005  # that an engine without other work waits for one, before it looks around


class Engine:
    """Loads a model and answers requests, in whatever process it is made in.

    Raises ModelUnsupported when made for a checkpoint that no family knows, DeviceMissing when
    there is no card to run on. `platform` is the configured device's unless it is given; `load` may
    make the model from something else than a checkpoint's weights. With `options.tensor_parallel`
    this is rank 0, and `links` lead to the processes of the others. `clock` gives the seconds by
    which steps are measured.
    """

    def __init__(
        self,
        options: EngineOptions,
        progress: Progress = lambda phase, fraction: None,
        platform: Platform | None = None,
        load: Load | None = None,
        links: Several[Connection] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.options = options
        self._clock, self._landed_at = clock, 0.0
        self._platform = platform_for(options.device) if platform is None else platform
        if len(links) != options.tensor_parallel - 1:
            raise EngineError("every rank but the first needs a process and a pipe to it")
        quantized = options.quantization is not None
        self._ranks: Ranks | None = None
        if links:
            self._ranks = Ranks(0, options.tensor_parallel, links, self._platform.device)
            load = partial(
                load_share,
                rank=0,
                ranks=options.tensor_parallel,
                quantized=quantized,
                load=load or load_stored,
            )
        elif load is None:
            load = loader_for(options.quantization)
        if options.speculation is not None and self._platform.overlaps:
            raise ModelUnsupported(
                f"engine.speculation={options.speculation} needs engine=cpu: elsewhere a step is "
                "launched before the tokens of the one before are known"
            )
        torch.set_num_threads(options.threads)
        prepared = prepare(options, self._platform, progress, load, self._ranks)
        self._family, self._eos_ids = prepared.loaded.family, prepared.loaded.eos_ids
        self._runner = prepared.runner
        self._launcher = Launcher(self._runner, prepared.sampler, self._platform, options.page_size)
        self._pool = PagePool(self._runner.pages)
        sizes = self._family.state_sizes()
        self._states = None if sizes is None else StatePages(options.state_pages, sizes.page)
        self._scheduler = Scheduler(
            self._pool,
            options.page_size,
            options.max_tokens_per_step,
            options.max_sequences,
            options.max_prompt_rows,
            options.speculation_tokens if options.speculation is not None else 0,
            Pace(options.prefill_seconds, turning(prepared.loaded)),
            self._states,
        )
        self._grammars = Grammars(options.model_path, self._runner.vocabulary, self._eos_ids)
        self._flight: Flight | None = None
        self._sequences: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._steps = self._prompt_tokens = self._generated_tokens = self._hit_tokens = 0
        self._draft_tokens = self._accepted_tokens = 0

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestRefused if it can never run; then nothing is queued."""
        options = self.options
        if not request.prompt_ids:
            raise RequestRefused("the prompt is empty")
        if (request.sampling.max_tokens > 0) == (request.pooling is not None):
            raise RequestRefused("either tokens or a pooled vector must be asked for")
        whole = self._family.encoder_only
        if whole and request.pooling is None:
            raise RequestRefused("this model makes vectors of prompts, and no tokens")
        if self._family.classifies and request.pooling != "cls":
            raise RequestRefused("this model makes scores of a prompt's first token alone")
        if request.second is not None and not (whole and request.second > 0):
            raise RequestRefused("this model does not tell two texts of a prompt apart")
        if request.id in self._sequences:
            raise RequestRefused("a request with this id is running")
        if max(request.prompt_ids) >= self._runner.vocabulary or min(request.prompt_ids) < 0:
            raise RequestRefused(f"token ids must lie in 0..{self._runner.vocabulary - 1}")
        if any(item.modality not in options.modalities for item in request.media):
            raise RequestRefused("this engine was started without the tower for such media")
        for item in request.media:
            self._check(item)
        if self._states is not None:
            self._check_states(request.media, self._states)
        if request.alignment is not None:
            self._check_alignment(request, request.alignment)
        spans = [
            (item.start, item.end)
            for item in request.media
            if item.modality in self._family.both_ways
        ]
        if whole:  # no part of it can be computed before the rest
            spans = [(0, len(request.prompt_ids))]
        longest = max((end - start for start, end in spans), default=0)
        if request.sampling.prompt_logprobs is not None and longest > options.max_prompt_rows:
            raise RequestRefused(
                f"prompt_logprobs of an item of {longest} tokens that attend to each other; "
                f"{options.max_prompt_rows} can be computed at once"
            )
        reason = span_admission(
            longest, options.max_tokens_per_step, 1 if whole else options.max_sequences
        ) or admission(
            len(request.prompt_ids),
            request.sampling.max_tokens,
            options.max_len,
            self._pool.pages,
            options.page_size,
        )
        if reason is not None:
            raise RequestRefused(reason)
        positions, offset = self._family.positions(request.prompt_ids, request.media)
        source = request.constraint
        constraints = [
            None if source is None else source.start(self._grammars) for _ in range(request.n)
        ]
        # without a shared cache, the answers of one request still share their prompt
        salt = request.salt if options.prefix_cache and not whole else os.urandom(16)
        self._arrivals += 1
        sequences: list[Sequence] = []
        for index, constraint in enumerate(constraints):
            sequence = Sequence(
                request=request,
                index=index,
                arrival=self._arrivals,
                salt=salt,
                positions=positions,
                position_offset=offset,
                tokens=list(request.prompt_ids),
                spans=spans,
                leader=sequences[0] if sequences else None,
                constraint=constraint,
            )
            sequences.append(sequence)
            self._scheduler.add(sequence)
        self._sequences[request.id] = sequences
        self._prompt_tokens += len(request.prompt_ids)

    def _check(self, item: MediaItem) -> None:
        """Raises RequestRefused for tensors that no preparing of an item gives."""
        try:
            if "embeds" in item.tensors:
                fitting(item, "embeds", FLOATS, (item.encoded, self._runner.hidden))
            if item.states and (self._states is None or item.length or item.start < 0):
                raise ValueError("it has states that nothing attends to across")
            self._family.check_item(item)
        except ValueError as wrong:
            raise RequestRefused(f"tensors of a media item do not fit: {wrong}") from None

    def _check_states(self, media: list[MediaItem], states: StatePages) -> None:
        """Raises RequestRefused for items that a decoder cannot attend to across."""
        starts = [item.start for item in media if item.states]
        if starts != sorted(set(starts)):
            raise RequestRefused("items that are attended to across must begin one after another")
        needed = states.needed(media)
        if needed > states.pool.pages:
            raise RequestRefused(
                f"its media take {needed} pages of states, and there are {states.pool.pages}"
            )

    def _check_alignment(self, request: Request, wanted: Alignment) -> None:
        """Raises RequestRefused unless there is attention across of just this."""
        sizes = self._family.state_sizes()
        if sizes is None or request.pooling != "last":
            raise RequestRefused("nothing of a prompt can be aligned here")
        if len(request.media) != 1 or request.media[0].start or not request.media[0].states:
            raise RequestRefused("a prompt is aligned with one item, before all of it")
        if not wanted.heads or any(
            not (0 <= layer < sizes.layers and 0 <= head < sizes.heads)
            for layer, head in wanted.heads
        ):
            raise RequestRefused("the model has no such heads")
        if not (0 <= wanted.first < len(request.prompt_ids) and wanted.width % 2 and wanted.states):
            raise RequestRefused("no tokens or states are left to be aligned")

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its answers, now; its pages are free when this returns."""
        for sequence in list(self._sequences.get(request_id, ())):
            if index is None or sequence.index == index:
                self._end(sequence, "abort")

    def close(self) -> None:
        """Let the other ranks go. Nothing can be computed afterwards."""
        if self._ranks is not None:
            self._ranks.leave()

    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting or self._flight)

    def step(self) -> list[Output]:
        """Compute one batch and return what it added; a sequence that fails ends alone.

        Where the device works by itself, a step is launched before the one before has reached the
        host: what is returned then lags one step, and a token computed after a sequence's last one
        is dropped. Raises DeviceLost when the device has failed; then the engine is of no more use.
        """
        slices = self._scheduler.schedule()
        if not slices:
            if self._flight is None:
                self._grammars.await_one(GRAMMAR_SECONDS)
            return self._land_previous()
        self._steps += 1
        try:
            slices = self._runner.media.ready(slices)
            if not slices:
                return self._land_previous()
            flight = self._launch(slices)
        except Exception as error:
            return self._land_previous() + self._one_by_one(slices, error)
        outputs = self._land_previous()
        self._flight = flight
        return outputs if self._platform.overlaps else outputs + self._land_previous()

    def encodes(self) -> list[tuple[str, float]]:
        """Modality and seconds of each item that went through its tower since the last call."""
        media = self._runner.media
        done, media.encodes = media.encodes, []
        return done

    def stats(self) -> EngineStats:
        cache, pool = self._runner.media.cache, self._pool
        kept = not self._family.encoder_only  # else pages are numbers, see `EncoderRunner`
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            pages_total=pool.pages if kept else 0,
            pages_used=pool.used if kept else 0,
            pages_cached=pool.cached if kept else 0,
            prefix_hit_tokens=self._hit_tokens,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self._scheduler.preemptions,
            encoder_cache_bytes=cache.bytes,
            encoder_cache_hits=cache.hits,
            encoder_cache_misses=cache.misses,
            steps=self._steps,
            draft_tokens=self._draft_tokens,
            accepted_tokens=self._accepted_tokens,
        )

    def _one_by_one(self, slices: list[Slice], error: Exception) -> list[Output]:
        """Compute the slices of a step that failed, each alone, to find whose fault it was."""
        self._raise_if_lost(error)
        logger.error(
            "a step of %d sequences failed; trying them one by one", len(slices), exc_info=error
        )
        outputs = []
        for item in slices:
            if item.draft is not None:
                continue  # nothing is lost without it
            if item.sequence.finish_reason is not None:
                continue  # its last token was in flight when the step was planned
            try:
                outputs += self._land(self._launch([item]))
            except Exception as fault:
                self._raise_if_lost(fault)
                logger.exception("request %s failed", item.sequence.request.id)
                outputs.append(self._failed(item.sequence, fault))
        return outputs

    def _raise_if_lost(self, error: Exception) -> None:
        if isinstance(error, DeviceLost):
            raise error
        if self._runner.lost:
            raise DeviceLost(
                "the ranks of this engine are out of step; the log says why"
            ) from error
        if self._platform.lost():
            raise DeviceLost("the device failed while computing; the log says why") from error

    def _launch(self, slices: list[Slice]) -> Flight:
        """Start computing slices. Afterwards their sequences hold tokens in flight."""
        begun, encodes = self._clock(), len(self._runner.media.encodes)
        flight = self._launcher.launch(slices)
        flight.begun = begun
        if len(self._runner.media.encodes) == encodes:  # no tower's time is in it
            flight.work = self._scheduler.work(slices)
        for item in slices:
            if item.draft is None:
                self._scheduler.computed(item)
        self._await(flight)
        return flight

    def _await(self, flight: Flight) -> None:
        """Let sequences hold what was chosen for them, before it is known."""
        for choice in flight.choices:
            choice.sequence.tokens.append(in_flight(choice.row))

    def _land_previous(self) -> list[Output]:
        flight, self._flight = self._flight, None
        if flight is None:
            return []
        try:
            outputs = self._land(flight)
        except RuntimeError as error:  # what a failed device answers to every question
            self._raise_if_lost(error)
            raise
        # where the device works by itself, a step begins when the one before is done
        begun, self._landed_at = max(flight.begun, self._landed_at), self._clock()
        if flight.work is not None:
            self._scheduler.pace.took(flight.work, self._landed_at - begun)
        return outputs

    def _land(self, flight: Flight) -> list[Output]:
        """Wait for a step and hand out what it chose, an output for each token."""
        outputs = self._landed(flight)
        drafts = flight.drafts
        self._draft_tokens += sum(len(draft.tokens) for draft in drafts)
        while drafts := [draft for draft in drafts if draft.goes_on]:
            assert flight.logits is not None
            try:
                following = self._launcher.follow(drafts, flight.logits)
            except Exception:  # it happens again in a step, which finds out whose fault it is
                logger.exception("drafts could not be followed")
                break
            self._await(following)
            for draft in drafts:
                draft.kept += 1
                self._scheduler.keep(draft.sequence)
            self._accepted_tokens += len(drafts)
            outputs += self._landed(following)
        for draft in flight.drafts:
            if draft.sequence.finish_reason is None:
                self._scheduler.settle(draft.sequence)
        return outputs

    def _landed(self, flight: Flight) -> list[Output]:
        for item, found in flight.prompts:
            sequence = item.sequence
            if sequence.finish_reason is None:
                noted = found.entries([sequence.sampling.prompt_logprobs or 0] * found.count)
                del sequence.prompt_logprobs[item.start :]  # computed again after a preemption
                sequence.prompt_logprobs += noted
        outputs = [
            self._pooled(sequence, vector)
            for sequence, vector in flight.vectors
            if sequence.finish_reason is None
        ]
        if flight.tokens is None:
            return outputs
        logprobs: dict[int, TokenLogprob] = {}
        if flight.logprobs is not None:
            tops = [choice.sequence.sampling.logprobs or 0 for choice in flight.wanted]
            entries = flight.logprobs.entries(tops)
            logprobs = {c.row: entry for c, entry in zip(flight.wanted, entries, strict=True)}
        return outputs + [
            self._extend(choice, token, logprobs.get(choice.row))
            for choice, token in zip(flight.choices, flight.tokens.tolist(), strict=True)
            if choice.sequence.finish_reason is None
        ]

    def _extend(self, choice: Choice, token: int, logprob: TokenLogprob | None) -> Output:
        sequence = choice.sequence
        sequence.tokens[choice.position] = token
        if sequence.constraint is not None:
            try:
                sequence.constraint.advance(token)
            except ConstraintFailed as fault:
                return self._failed(sequence, fault)
        generated = choice.position + 1 - sequence.prompt_length
        self._generated_tokens += 1
        prompt_logprobs = None
        if generated == 1:
            self._hit_tokens += sequence.cached_tokens
            if sequence.sampling.prompt_logprobs is not None:
                prompt_logprobs = [None, *sequence.prompt_logprobs]
        reason = self._finish_reason(sequence, token, generated)
        if reason is not None:
            del sequence.tokens[choice.position + 1 :]  # at most one, in flight
            self._scheduler.publish(sequence)
            self._end(sequence, reason)
        return Output(
            request_id=sequence.request.id,
            index=sequence.index,
            token_ids=[token],
            finish_reason=reason,
            logprobs=None if logprob is None else [logprob],
            prompt_logprobs=prompt_logprobs,
            cached_tokens=sequence.cached_tokens,
            admitted=sequence.admitted if generated == 1 else None,
        )

    def _pooled(self, sequence: Sequence, vector: HostCopy) -> Output:
        self._hit_tokens += sequence.cached_tokens
        self._end(sequence, "stop")
        return Output(
            request_id=sequence.request.id,
            index=sequence.index,
            token_ids=[],
            finish_reason="stop",
            cached_tokens=sequence.cached_tokens,
            vector=vector.tensor().numpy(),
        )

    def _finish_reason(self, sequence: Sequence, token: int, generated: int) -> str | None:
        options = sequence.sampling
        if generated >= options.min_tokens and (
            token in options.stop_token_ids or (token in self._eos_ids and not options.ignore_eos)
        ):
            return "stop"
        if sequence.constraint is not None and token in self._eos_ids:
            return "stop"
        return "length" if generated >= options.max_tokens else None

    def _failed(self, sequence: Sequence, fault: Exception) -> Output:
        self._end(sequence, "error")
        told = isinstance(fault, ConstraintFailed)
        return Output(
            request_id=sequence.request.id,
            index=sequence.index,
            token_ids=[],
            finish_reason="error",
            error=str(fault) if told else "the model failed on this request",
        )

    def _end(self, sequence: Sequence, reason: str) -> None:
        sequence.finish_reason = reason
        self._scheduler.finish(sequence)
        siblings = self._sequences[sequence.request.id]
        siblings.remove(sequence)
        if not siblings:
            del self._sequences[sequence.request.id]


def turning(loaded: LoadedModel) -> float:
    """Where in a sequence attention takes as long as products; of several ranks, their shares'."""
    config, shape = loaded.stack.config, loaded.shape
    return turning_point(
        config.hidden_size,
        config.intermediate_size,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
    )
