"""From a checked request to running answers: prompts, engine, text."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from appliance.client import Client
from appliance.errors import bad_request, engine_failed, not_found, overloaded
from appliance.generation.answers import (
    AnswerLength,
    AnswerOptions,
    Answers,
    AnswerText,
    AnswerVector,
    PromptScore,
    TokenClock,
)
from appliance.generation.conversation import ChatPrompt
from appliance.generation.parts import AnswerParser
from appliance.generation.prompting import Job, Prompting, Shown, sentence
from appliance.generation.sampling_defaults import SamplingDefaults
from appliance.generation.scores import ScoreSettings
from appliance.generation.style import Reply, Style
from appliance.generation.vectors import VectorSettings
from appliance.metrics import Metrics
from appliance.prompt.detokenize import Detokenizer
from appliance.prompt.stops import StopStrings
from engine.errors import EngineDead, RequestRefused
from engine.request import Request, SamplingOptions
from engine.sampling.constraint import ConstraintSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from appliance.generation.transcribing import Transcriber

logger = logging.getLogger("appliance.generation")

AT_ONCE = 32  # answers that begin in one turn of the event loop
# Log-probabilities that a request may come to, and all of them together: some 120 bytes each until
# they are read.
MOST_LOGPROBS, MOST_LOGPROBS_IN_ALL = 3_000_000, 6_000_000


class AnswerFields(Protocol):
    """A request's fields about its answers, whatever protocol it came by."""

    @property
    def answer_length(self) -> AnswerLength: ...

    def sampling(
        self, max_tokens: int, vocab_size: int, defaults: SamplingDefaults
    ) -> SamplingOptions:
        """The engine's options for an answer of at most `max_tokens`. Raises ApplianceError."""


class Generation:
    """Everything between the API and the engine, built once a server."""

    def __init__(
        self,
        *,
        client: Client,
        prompting: Prompting,
        metrics: Metrics,
        sampling: SamplingDefaults,
        style: Style,
        vectors: VectorSettings | None = None,
        scores: ScoreSettings | None = None,
        generates: bool = True,
    ) -> None:
        """Without `vectors` or `scores` none are served, without `generates` nothing else is."""
        self.client = client
        self.style = style
        self.tokenizer = prompting.tokenizer
        self.limits = prompting.limits
        self.modalities = prompting.modalities
        self.vectors = vectors
        self.scores = scores
        self.generates = generates
        self.prompting = prompting
        self.transcriber: Transcriber | None = None  # of a model that transcribes
        self._metrics = metrics
        self._sampling = sampling
        self._running: dict[Answers, int] = {}  # answers that the engine still works on
        self._tasks: set[asyncio.Task[None]] = set()
        self._logprobs = 0  # that unread answers may come to

    @property
    def active(self) -> int:
        """HTTP requests that are being generated."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers beyond those the engine can run at once."""
        return max(0, sum(self._running.values()) - self.limits.max_sequences)

    async def chat(
        self, prompt: ChatPrompt, fields: AnswerFields, options: AnswerOptions
    ) -> Answers:
        """Begin the answers to a conversation. Raises ApplianceError."""
        self._check_generates()
        stages = options.origin.stages
        job = await self.prompting.chat(prompt, fields.answer_length, stages)
        constraint, parser = await self._held(prompt, options.reply, job.ending)
        return await self._start([replace(job, constraint=constraint)], fields, options, parser)

    async def _held(
        self, prompt: ChatPrompt, reply: Reply, ending: str
    ) -> tuple[ConstraintSource | None, Callable[[], AnswerParser] | None]:
        """What answers behind a prompt that ends so are held to, and what tells their parts."""
        thinking = self.style.thinks(ending)
        reply = replace(reply, think=prompt.thinking.wanted is not False)
        make = partial(self.style.constraint, reply, thinking=thinking)
        held = reply.tools is not None or reply.structure is not None
        constraint = await self.prompting.aside(make) if held else make()
        return constraint, self.style.parser(reply, thinking=thinking)

    async def count_chat(self, prompt: ChatPrompt) -> Shown:
        """The prompt of a conversation, of any length. Raises ApplianceError."""
        return await self.prompting.shown_chat(prompt)

    async def show_chat(self, prompt: ChatPrompt, fields: AnswerFields, reply: Reply) -> Shown:
        """The prompt that `chat` would begin with, of answers that may be `reply`.

        Raises ApplianceError for what `chat` would refuse before its media are decoded.
        """
        shown = await self.prompting.shown_chat(prompt, fields.answer_length)
        await self._held(prompt, reply, shown.ending)
        return self._allowed(shown, fields)

    async def show_text(
        self,
        source: str | list[int],
        param: str,
        fields: AnswerFields | None = None,
        *,
        own_tokens: bool = True,
    ) -> Shown:
        """The same of one prompt of `complete`, with `own_tokens` of the tokenizer or without."""
        length = None if fields is None else fields.answer_length
        made = await self.prompting.shown_text(source, length, param, own_tokens=own_tokens)
        return self._allowed(made, fields)

    def _allowed(self, shown: Shown, fields: AnswerFields | None) -> Shown:
        if fields is not None and shown.max_tokens is not None:
            fields.sampling(shown.max_tokens, self.tokenizer.vocab_size, self._sampling)
        return shown

    async def complete(
        self, prompts: list[str | list[int]], fields: AnswerFields, options: AnswerOptions
    ) -> Answers:
        """Begin to go on from texts or token ids; answer `i` of prompt `j` is number `j * n + i`.

        Raises ApplianceError.
        """
        self._check_generates()
        make = partial(self.prompting.text, length=fields.answer_length)
        structure = options.reply.structure
        jobs = [replace(job, constraint=structure) for job in await _jobs(prompts, "prompt", make)]
        return await self._start(jobs, fields, options, None)

    def vector_settings(self) -> VectorSettings:
        """How vectors are made. Raises ApplianceError 404 where none are served."""
        if self.vectors is None:
            raise not_found(
                "This server makes no embeddings: its recipe has embeddings.serve=false.",
                "unsupported_model",
                "model",
            )
        return self.vectors

    async def embed(
        self,
        prompts: list[str | list[int]] | ChatPrompt,
        fields: AnswerFields,
        options: AnswerOptions,
    ) -> Answers:
        """Begin a vector of each prompt, or the one of a conversation. Raises ApplianceError."""
        options = replace(options, pooling=self.vector_settings().pooling)
        if isinstance(prompts, ChatPrompt):
            jobs = [await self.prompting.embedded_chat(prompts)]
        else:
            jobs = await _jobs(prompts, "input", self.prompting.embedded_text)
        return await self._start(jobs, fields, options, None)

    def score_settings(self) -> ScoreSettings:
        """How scores are made. Raises ApplianceError 404 where none are."""
        if self.scores is None:
            raise not_found(
                "This server scores no texts: its model is no reranker (embeddings.rerank).",
                "unsupported_model",
                "model",
            )
        return self.scores

    async def score(
        self, pairs: list[tuple[tuple[str, str], str]], fields: AnswerFields, options: AnswerOptions
    ) -> Answers:
        """Begin the score of each pair of texts, which has its JSON path. Raises ApplianceError."""
        self.score_settings()
        jobs: list[Job] = []
        for texts, param in pairs:
            jobs.append(await self.prompting.pair(texts, param))
            if len(jobs) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return await self._start(jobs, fields, replace(options, pooling="cls"), None)

    def _check_generates(self) -> None:
        """Raise ApplianceError 404 for a model that makes vectors, scores or transcripts alone."""
        if not self.generates or self.transcriber is not None:
            instead = "makes embeddings: POST /v1/embeddings"
            if self.scores is not None:
                instead = "scores texts: POST /rerank or /score"
            elif self.transcriber is not None:
                instead = "transcribes sounds: POST /v1/audio/transcriptions"
            raise not_found(
                f"This model does not generate text; it {instead}.", "unsupported_model", "model"
            )

    async def pooled(self, request: Request, param: str) -> NDArray[np.float32]:
        """The vector of a request that asks for one and for no text. Raises ApplianceError."""
        ended = False
        try:
            async for output in self.client.submit(request):
                ended = output.finish_reason is not None
                if output.vector is not None:
                    return output.vector
            raise engine_failed("The engine gave the answer up.")
        except RequestRefused as refused:
            raise bad_request(sentence(str(refused)), param) from refused
        except EngineDead as dead:
            raise engine_failed("The engine stopped while it was answering.") from dead
        finally:
            if not ended:
                self.client.abort(request.id)

    async def answer(self, job: Job, fields: AnswerFields, options: AnswerOptions) -> Answers:
        """Begin the answers to a prompt that is there already. Raises ApplianceError."""
        return await self._start([job], fields, options, None)

    async def _start(
        self,
        jobs: list[Job],
        fields: AnswerFields,
        options: AnswerOptions,
        parser: Callable[[], AnswerParser] | None,
    ) -> Answers:
        vocabulary, defaults = self.tokenizer.vocab_size, self._sampling
        sampling = [fields.sampling(job.max_tokens, vocabulary, defaults) for job in jobs]
        noted = sum(map(partial(logprobs_of, options.n), jobs, sampling))
        self._check_logprobs(noted)
        scores = [PromptScore(job.prompt_ids, job.media_tokens, job.text) for job in jobs]
        stages = options.origin.stages
        stages.end("prompt")
        logged = options.origin.logged
        answers = Answers(scores, options.n, stages, timed=options.timed, logged=logged)
        self._running[answers] = answers.total
        self._logprobs += noted
        answers.on_close(partial(self._forget_logprobs, noted))
        options.origin.charge(answers.prompt_tokens)
        try:
            await self._begin(jobs, sampling, options, answers, parser)
        except BaseException:
            answers.close()
            raise
        return answers

    async def _begin(
        self,
        jobs: list[Job],
        sampling: list[SamplingOptions],
        options: AnswerOptions,
        answers: Answers,
        parser: Callable[[], AnswerParser] | None,
    ) -> None:
        begun = 0
        for number, job in enumerate(jobs):
            first = number * options.n
            texts = [self._answer_text(first + i, options, parser) for i in range(options.n)]
            work = self._run(number, job, sampling[number], options, answers, texts)
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            answers.on_close(task.cancel)
            if first + options.n - begun >= AT_ONCE and number + 1 < len(jobs):
                begun = first + options.n
                await asyncio.sleep(0)  # all tasks of a moment begin in one turn of the loop

    def _check_logprobs(self, count: int) -> None:
        """Raise ApplianceError where there would be too many to keep until they are read."""
        if count > MOST_LOGPROBS:
            raise bad_request(
                f"The answers may come to {count} log-probabilities, more than {MOST_LOGPROBS}: "
                "ask for fewer tokens, answers or top log-probabilities.",
                "logprobs",
                "invalid_value",
            )
        if count and self._logprobs + count > MOST_LOGPROBS_IN_ALL:
            raise overloaded("Too many log-probabilities are asked for already; try again soon.")

    def _forget_logprobs(self, count: int) -> None:
        self._logprobs -= count

    def stop_all(self, reason: str) -> None:
        """End whatever still runs with an error."""
        for answers in list(self._running):
            answers.fail(engine_failed(reason))
        for task in list(self._tasks):
            task.cancel()

    async def _run(
        self,
        number: int,
        job: Job,
        sampling: SamplingOptions,
        options: AnswerOptions,
        answers: Answers,
        texts: list[AnswerText | AnswerVector],
    ) -> None:
        request = Request(
            id=secrets.token_hex(12),
            prompt_ids=job.prompt_ids,
            sampling=sampling,
            media=job.media,
            n=options.n,
            priority=options.priority,
            salt=options.salt,
            constraint=job.constraint,
            pooling=options.pooling,
            second=job.second,
        )
        ended = False
        try:
            ended = await self._follow(request, number, options, answers, texts)
        except RequestRefused as refused:
            answers.fail(bad_request(sentence(str(refused)), job.param))
        except EngineDead:
            answers.fail(engine_failed("The engine stopped while it was answering."))
        except asyncio.CancelledError:
            self._metrics.aborted.inc()
            raise
        except Exception:
            logger.exception("a request failed while it was generated")
            answers.fail(engine_failed("The server failed while it was answering."))
        finally:
            if not ended:
                self.client.abort(request.id)
            self._leave(answers, options.n)
            self._metrics.end_to_end.observe(time.perf_counter() - options.origin.arrived)
            self._metrics.prompt_length.observe(len(job.prompt_ids))

    async def _follow(
        self,
        request: Request,
        number: int,
        options: AnswerOptions,
        answers: Answers,
        texts: list[AnswerText | AnswerVector],
    ) -> bool:
        """Pass outputs on until every answer has ended; False when the engine gave one up."""
        clock = TokenClock(self._metrics, options.origin.arrived, options.n)
        prompt = answers.prompts[number]
        left = options.n
        async for output in self.client.submit(request):
            text = texts[output.index]
            if text.finish_reason is not None:
                continue
            if output.finish_reason in ("error", "abort"):
                answers.fail(engine_failed(output.error or "The engine gave the answer up."))
                return False
            if output.vector is None:
                clock.tick(output.index, len(output.token_ids))
            options.origin.charge(len(output.token_ids))
            if answers.first_token is None:
                answers.first_token = clock.first_token
                options.origin.stages.begin_answer(output.admitted)
            prompt.cached_tokens = max(prompt.cached_tokens, output.cached_tokens)
            if output.prompt_logprobs is not None:
                prompt.logprobs = output.prompt_logprobs
            delta = text.push(output)
            if delta.finish_reason is not None:
                left -= 1
                self._metrics.finished.labels(delta.finish_reason).inc()
                if output.vector is None:
                    self._metrics.answer_length.observe(text.tokens)
                if output.finish_reason is None and left:
                    self.client.abort(request.id, output.index)
            if not left:
                options.origin.stages.end("decode")
            answers.push(delta)
            if not left:
                if output.finish_reason is None:
                    self.client.abort(request.id)
                return True
        raise EngineDead("the outputs ended before the answers")

    def _answer_text(
        self, index: int, options: AnswerOptions, parser: Callable[[], AnswerParser] | None
    ) -> AnswerText | AnswerVector:
        if options.pooling is not None:
            return AnswerVector(index)
        return AnswerText(
            index,
            Detokenizer(
                self.tokenizer,
                skip_special_tokens=options.skip_special_tokens,
                shown=frozenset() if parser is None else self.style.mark_ids,
                continuing=options.continuing,
            ),
            StopStrings(list(options.stop), options.include_stop) if options.stop else None,
            min_tokens=options.min_tokens,
            show_end=options.include_stop,
            discard=options.discard,
            parser=None if parser is None else parser(),
        )

    def _leave(self, answers: Answers, count: int) -> None:
        left = self._running.get(answers, 0) - count
        if left > 0:
            self._running[answers] = left
        elif self._running.pop(answers, None) is not None:
            self._metrics.stages_took(answers.stages.seconds)


async def _jobs(
    prompts: list[str | list[int]],
    field: str,
    make: Callable[[str | list[int], str], Awaitable[Job]],
) -> list[Job]:
    """What is made of each prompt and its JSON path, with turns for others in between."""
    jobs: list[Job] = []
    for number, source in enumerate(prompts):
        jobs.append(await make(source, f"{field}[{number}]" if len(prompts) > 1 else field))
        if len(jobs) % AT_ONCE == 0:
            await asyncio.sleep(0)
    return jobs


def logprobs_of(n: int, job: Job, sampling: SamplingOptions) -> int:
    """How many log-probabilities `n` answers to a prompt may come to, its own included."""
    count = 0
    if sampling.logprobs is not None:
        count += n * sampling.max_tokens * (1 + sampling.logprobs)
    if sampling.prompt_logprobs is not None:
        count += n * len(job.prompt_ids) * (1 + sampling.prompt_logprobs)
    return count
