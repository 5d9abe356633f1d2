"""The engine: requests in, one step at a time, tokens out."""

from __future__ import annotations

import logging
import os

import torch

from engine.batch import build_batch
from engine.errors import RequestRefused
from engine.loader import Progress, load_model
from engine.options import EngineOptions
from engine.page_pool import PagePool
from engine.plan import admission
from engine.request import Output, Request, TokenLogprob
from engine.runner import Runner
from engine.sampler import Sampler, token_logprobs
from engine.scheduler import Scheduler, Slice
from engine.sequence import Sequence
from engine.stats import EngineStats

logger = logging.getLogger(__name__)


class Engine:
    """Loads a model and answers requests, in whatever process it is made in.

    Raises ModelUnsupported when made for a checkpoint that no family knows.
    """

    def __init__(
        self, options: EngineOptions, progress: Progress = lambda phase, fraction: None
    ) -> None:
        torch.set_num_threads(options.threads)
        self.options = options
        progress("loading weights", 0.0)
        loaded = load_model(
            options.model_path, options.dtype, options.device, options.modalities, progress
        )
        progress("preparing", 0.0)
        self._family = loaded.family
        self._eos_ids = loaded.eos_ids
        self._runner = Runner(loaded, options)
        self._pool = PagePool(options.pages)
        self._scheduler = Scheduler(
            self._pool, options.page_size, options.max_tokens_per_step, options.max_sequences
        )
        self._sampler = Sampler(loaded.eos_ids, self._runner.vocabulary)
        self._sequences: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._steps = self._prompt_tokens = self._generated_tokens = self._hit_tokens = 0

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestRefused if it can never run; then nothing is queued."""
        options = self.options
        if not request.prompt_ids:
            raise RequestRefused("the prompt is empty")
        if request.id in self._sequences:
            raise RequestRefused("a request with this id is running")
        if max(request.prompt_ids) >= self._runner.vocabulary or min(request.prompt_ids) < 0:
            raise RequestRefused(f"token ids must lie in 0..{self._runner.vocabulary - 1}")
        if any(item.modality not in options.modalities for item in request.media):
            raise RequestRefused("this engine was started without the tower for such media")
        for item in request.media:
            embeds = item.tensors.get("embeds")
            if embeds is not None and embeds.shape != (item.length, self._runner.hidden):
                raise RequestRefused("embeddings of a media item do not fit its placeholders")
        reason = admission(
            len(request.prompt_ids),
            request.sampling.max_tokens,
            options.max_len,
            options.pages,
            options.page_size,
        )
        if reason is not None:
            raise RequestRefused(reason)
        positions, offset = self._family.positions(request.prompt_ids, request.media)
        # without a shared cache, the answers of one request still share their prompt
        salt = request.salt if options.prefix_cache else os.urandom(16)
        self._arrivals += 1
        sequences: list[Sequence] = []
        for index in range(request.n):
            sequence = Sequence(
                request=request,
                index=index,
                arrival=self._arrivals,
                salt=salt,
                positions=positions,
                position_offset=offset,
                tokens=list(request.prompt_ids),
                leader=sequences[0] if sequences else None,
            )
            sequences.append(sequence)
            self._scheduler.add(sequence)
        self._sequences[request.id] = sequences
        self._prompt_tokens += len(request.prompt_ids)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its answers, now; its pages are free when this returns."""
        for sequence in list(self._sequences.get(request_id, ())):
            if index is None or sequence.index == index:
                self._end(sequence, "abort")

    def has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def step(self) -> list[Output]:
        """Compute one batch and return what it added; a sequence that fails ends alone."""
        slices = self._scheduler.schedule()
        if not slices:
            return []
        self._steps += 1
        try:
            return self._compute(slices)
        except Exception:
            logger.exception("a step of %d sequences failed; trying them one by one", len(slices))
        outputs = []
        for item in slices:
            try:
                outputs += self._compute([item])
            except Exception:
                logger.exception("request %s failed", item.sequence.request.id)
                outputs.append(self._failed(item.sequence))
        return outputs

    def stats(self) -> EngineStats:
        cache = self._runner.encoder_cache
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            pages_total=self._pool.pages,
            pages_used=self._pool.used,
            pages_cached=self._pool.cached,
            prefix_hit_tokens=self._hit_tokens,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self._scheduler.preemptions,
            encoder_cache_bytes=cache.bytes,
            encoder_cache_hits=cache.hits,
            encoder_cache_misses=cache.misses,
            steps=self._steps,
        )

    def _compute(self, slices: list[Slice]) -> list[Output]:
        batch = build_batch(slices, self.options.page_size)
        logits = self._runner.run(batch)
        row = 0
        sampled: list[tuple[Slice, int]] = []  # slice, its row of logits
        for item in slices:
            sequence = item.sequence
            prompted = (
                sequence.sampling.prompt_logprobs is not None
                and item.start < sequence.prompt_length
            )
            if prompted:
                rows = logits[row : row + item.count]
                self._note_prompt_logprobs(item, rows)
                row += item.count
            elif item.samples:
                row += 1
            if item.samples:
                sampled.append((item, row - 1))
        outputs: list[Output] = []
        if sampled:
            rows = logits
            if len(sampled) != len(logits):
                rows = logits[torch.tensor([r for _, r in sampled], device=logits.device)]
            sequences = [item.sequence for item, _ in sampled]
            tokens = self._sampler.sample(rows, sequences)
            logprobs = _wanted_logprobs(rows, sequences, tokens)
        for item in slices:
            self._scheduler.computed(item)
        if sampled:
            for sequence, token, logprob in zip(sequences, tokens, logprobs, strict=True):
                outputs.append(self._extend(sequence, token, logprob))
        return outputs

    def _extend(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> Output:
        first = sequence.generated == 0
        sequence.tokens.append(token)
        self._generated_tokens += 1
        if first:
            self._hit_tokens += sequence.cached_tokens
        prompt_logprobs = None
        if first and sequence.sampling.prompt_logprobs is not None:
            prompt_logprobs = [None, *sequence.prompt_logprobs]
        reason = self._finish_reason(sequence, token)
        if reason is not None:
            self._end(sequence, reason)
        return Output(
            request_id=sequence.request.id,
            index=sequence.index,
            token_ids=[token],
            finish_reason=reason,
            logprobs=None if logprob is None else [logprob],
            prompt_logprobs=prompt_logprobs,
            cached_tokens=sequence.cached_tokens,
        )

    def _finish_reason(self, sequence: Sequence, token: int) -> str | None:
        options = sequence.sampling
        if sequence.generated >= options.min_tokens and (
            token in options.stop_token_ids or (token in self._eos_ids and not options.ignore_eos)
        ):
            return "stop"
        return "length" if sequence.generated >= options.max_tokens else None

    def _note_prompt_logprobs(self, item: Slice, rows: torch.Tensor) -> None:
        """Row i of a slice gives the log-probability of the prompt token after it."""
        sequence = item.sequence
        following = sequence.request.prompt_ids[item.start + 1 : item.end + 1]
        top = sequence.sampling.prompt_logprobs
        if following and top is not None:
            del sequence.prompt_logprobs[item.start :]  # computed again after a preemption
            sequence.prompt_logprobs += token_logprobs(
                rows[: len(following)], following, [top] * len(following)
            )

    def _failed(self, sequence: Sequence) -> Output:
        self._end(sequence, "error")
        return Output(
            request_id=sequence.request.id,
            index=sequence.index,
            token_ids=[],
            finish_reason="error",
            error="the model failed on this request",
        )

    def _end(self, sequence: Sequence, reason: str) -> None:
        sequence.finish_reason = reason
        self._scheduler.finish(sequence)
        siblings = self._sequences[sequence.request.id]
        siblings.remove(sequence)
        if not siblings:
            del self._sequences[sequence.request.id]


def _wanted_logprobs(
    logits: torch.Tensor, sequences: list[Sequence], tokens: list[int]
) -> list[TokenLogprob | None]:
    """Log-probabilities of the new tokens of those sequences that asked for them."""
    wanted = [i for i, s in enumerate(sequences) if s.sampling.logprobs is not None]
    answer: list[TokenLogprob | None] = [None] * len(sequences)
    if wanted:
        found = token_logprobs(
            logits[torch.tensor(wanted, device=logits.device)],
            [tokens[i] for i in wanted],
            [sequences[i].sampling.logprobs or 0 for i in wanted],
        )
        for i, logprob in zip(wanted, found, strict=True):
            answer[i] = logprob
    return answer
